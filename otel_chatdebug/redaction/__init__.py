"""Secrets out, facts in: what is recorded of headers, URLs, texts and bodies.

- **Headers and query parameters** by an allow-list of names that are known to be harmless (`names`): an unknown name
  may carry anything, so its value becomes `REDACTED`. Users add names of their own.
- **JSON** by the names of its keys, at any depth, also inside SSE data, NDJSON, and texts that are JSON themselves
  (arguments of tool calls). Users add names of their own. Token *counts* are never touched.
- **Free text** by the known formats of keys (`formats`), user info and query values of URLs, and ``"password": "..."``
  where it stands in the text. Messages, ids and numbers stay.
- **Binary data** (files, images, base64) by its length.
- What should be JSON and cannot be parsed is replaced whole: a secret in it could not be found.

Nothing here raises; what fails on its own is redacted whole. Every pattern takes linear time, whatever the text. All
functions are pure; any thread. What cannot be found: a secret of no known format in the middle of a message, and one
that a model says in several chunks of a stream whose format is not known. For those there is the user's own redactor
(`hook`).
"""

from otel_chatdebug.redaction.bodies import Redactor
from otel_chatdebug.redaction.formats import REDACTED
from otel_chatdebug.redaction.hook import Redact, UserRedactor

__all__ = ["REDACTED", "Redact", "Redactor", "UserRedactor"]
