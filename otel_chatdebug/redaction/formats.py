"""The formats by which secrets are known in any text: keys of providers, tokens, private keys.

Linear and fast: each alternative begins with one character that is rare in prose, so that the scan skips all others at
C speed, and looks back from there for its prefix (which is why the prefix stays: "sk-[REDACTED]" tells which kind of
key it was). Behind that, runs are bounded or possessive, and an unbounded run that may fail in the end starts only
where no other run could have started: no character is looked at more than a constant number of times.
"""

from __future__ import annotations

import re

REDACTED = "[REDACTED]"

_WORD = "[A-Za-z0-9_-]"
CREDENTIAL = "[A-Za-z0-9._~+/=-]"
HAS_DIGIT = "(?=[A-Za-z._~+/-]{0,80}[0-9])"
CAMEL = "(?=[A-Za-z]{0,80}[a-z][A-Z])"  # as base64 of a text looks, and a word does not

_HYPHEN = "|".join(
    (
        # OpenAI and Anthropic. Their kin say less, so there must be a digit, or it is long: "sk-estimator-checks"
        # is no key, nor is "risk-assessment-2024".
        rf"(?<=sk-)(?:ant-(?:api|admin|oat|sid)|proj-|svcacct-){_WORD}{{4,}}+",
        rf"(?<=sk-)(?<![A-Za-z0-9]sk-)(?:(?:ant|or|live|test|lf|admin)-{_WORD}{{6,}}+"
        rf"|{HAS_DIGIT}{_WORD}{{8,}}+|{_WORD}{{20,}}+|[A-Za-z]{{16,}}+{_WORD}*+)",
        rf"(?<=xai-)(?<![A-Za-z0-9]xai-)(?:{HAS_DIGIT}|(?=[A-Za-z]{{16}})){_WORD}{{8,}}+",
        rf"(?<=pplx-){_WORD}{{16,}}+",  # Perplexity
        rf"(?<=glpat-){_WORD}{{8,}}+",  # GitLab
        rf"(?<=xox[abeoprs]-){_WORD}{{8,}}+",  # Slack
    )
)
_UNDERSCORE = "|".join(
    (
        rf"(?<=gsk_){_WORD}{{8,}}+",  # Groq
        r"(?<=gh[opsru]_)[A-Za-z0-9]{8,}+",  # GitHub
        rf"(?<=github_pat_){_WORD}{{8,}}+",
        r"(?<=hf_)(?<![A-Za-z0-9]hf_)[A-Za-z0-9]{12,}+",  # Hugging Face
        rf"(?<=[rs]k_)(?:live|test)_{_WORD}{{8,}}+",  # Stripe
    )
)
KEY_FORMATS = (
    f"-(?:{_HYPHEN})",
    f"_(?:{_UNDERSCORE})",
    r"A(?:KIA|SIA)[A-Z0-9]{12,}+",  # AWS
    rf"AIza{_WORD}{{20,}}+",  # Google
    rf"9(?<=ya29)\.{_WORD}{{8,}}+",  # Google, OAuth
    rf"J(?<=eyJ)(?<!{_WORD}eyJ){_WORD}{{6,}}+(?:\.{_WORD}++){{1,4}}",  # JWT, signed or encrypted
)
_KEYS = re.compile("|".join(KEY_FORMATS))
PRIVATE_KEY = re.compile(r"-----BEGIN [A-Z ]{0,40}PRIVATE KEY-----[^-]*+(?:-----END [A-Z ]{0,40}PRIVATE KEY-----)?")


def keys_out(text: str) -> str:
    """Without the known formats of keys, and nothing else: for names, paths and parts of URLs."""
    return _KEYS.sub(replace_key, text)


def replace_key(match: re.Match[str]) -> str:
    """What stands before the match belongs to the key's prefix, and so does its first character."""
    first = match[0][0]
    return REDACTED if first == "A" else first + REDACTED
