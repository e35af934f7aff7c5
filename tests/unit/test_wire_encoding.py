"""Content codings: whatever the split, and whatever the bytes, the plain text or a plain word that there is none."""

from __future__ import annotations

import gzip
import importlib
import zlib

import brotli
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from otel_chatdebug.wire import encoding
from otel_chatdebug.wire.encoding import Decoder, decoder

TEXT = b'data: {"choices":[{"delta":{"content":"w\xc3\xb6rld"}}]}\n\n' * 40


def raw_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


CODED = {
    "gzip": gzip.compress(TEXT),
    "x-gzip": gzip.compress(TEXT),
    "GZIP ": gzip.compress(TEXT),
    "gzip, identity": gzip.compress(TEXT[:99]) + gzip.compress(TEXT[99:]),
    "deflate": zlib.compress(TEXT),
    " deflate": raw_deflate(TEXT),
    "br": brotli.compress(TEXT),
    "zstd": zstandard.ZstdCompressor().compress(TEXT),
    " zstd": zstandard.ZstdCompressor().compress(TEXT[:99]) + zstandard.ZstdCompressor().compress(TEXT[99:]),
    "gzip, br": brotli.compress(gzip.compress(TEXT)),
    "zstd, deflate, gzip": gzip.compress(zlib.compress(zstandard.ZstdCompressor().compress(TEXT))),
    "": TEXT,
    "identity": TEXT,
}


def new(content_encoding: str | None, **limit: int) -> Decoder:
    made = decoder(content_encoding, **limit)
    assert made is not None
    return made


@pytest.mark.parametrize("content_encoding", CODED)
def test_every_coding_is_undone_whole_and_byte_by_byte(content_encoding: str) -> None:
    data = CODED[content_encoding]
    assert new(content_encoding).decode(data) == TEXT
    one = new(content_encoding)
    assert b"".join(one.decode(data[i : i + 1]) for i in range(len(data))) == TEXT
    assert not one.failed
    assert not one.exhausted


@pytest.mark.parametrize("content_encoding", ["gzip", "deflate", "br", "zstd"])
def test_what_came_before_a_cut_is_there(content_encoding: str) -> None:
    text = bytes(range(256)) * 400 + b"".join(b"%d;" % i for i in range(20_000))
    compress = {
        "gzip": gzip.compress,
        "deflate": zlib.compress,
        "br": brotli.compress,
        "zstd": zstandard.ZstdCompressor().compress,
    }
    data = compress[content_encoding](text)
    one = new(content_encoding)
    got = one.decode(data[: len(data) * 4 // 5])
    assert text.startswith(got)
    assert not one.failed


def test_no_coding_at_all_gives_back_what_came() -> None:
    assert new(None).decode(TEXT) == TEXT


@pytest.mark.parametrize("content_encoding", ["compress", "gzip, rot13", "gzip,gzip,gzip,gzip,gzip"])
def test_a_coding_that_cannot_be_undone_is_said_at_once(content_encoding: str) -> None:
    assert decoder(content_encoding) is None


@pytest.mark.parametrize("content_encoding", ["br", "zstd"])
def test_without_its_module_a_coding_cannot_be_undone(content_encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_module(name: str) -> object:
        raise ImportError(name)

    monkeypatch.setattr(importlib, "import_module", no_module)
    assert decoder(content_encoding) is None


BOMB = b"\0" * 50_000_000


@pytest.mark.parametrize(
    ("content_encoding", "data"),
    [
        ("gzip", gzip.compress(BOMB)),
        ("deflate", zlib.compress(BOMB)),
        ("br", brotli.compress(BOMB, quality=3)),
        ("zstd", zstandard.ZstdCompressor().compress(BOMB)),
        ("gzip, gzip", gzip.compress(gzip.compress(BOMB))),
        ("", BOMB),
    ],
    ids=["gzip", "deflate", "br", "zstd", "twice", "plain"],
)
def test_a_bomb_stops_at_the_limit(content_encoding: str, data: bytes) -> None:
    one = new(content_encoding, limit=100_000)
    got = b"".join(one.decode(data[i : i + 1000]) for i in range(0, len(data), 1000))
    assert len(got) == 100_000
    assert one.exhausted
    assert one.decode(data) == b""


@pytest.mark.parametrize("content_encoding", ["gzip", "deflate", "br", "zstd"])
def test_a_text_of_exactly_the_limit_is_whole(content_encoding: str) -> None:
    one = new(content_encoding, limit=len(TEXT))
    assert one.decode(CODED[content_encoding]) == TEXT
    assert not one.exhausted


REAL_BROTLI = brotli.Decompressor


class OldBrotli:
    """brotli before 1.2: no way to bound its output."""

    produced = 0

    def __init__(self) -> None:
        self._real = REAL_BROTLI()

    def process(self, data: bytes) -> bytes:
        output: bytes = self._real.process(data)
        OldBrotli.produced += len(output)
        return output


def test_a_brotli_that_cannot_bound_its_output_is_fed_in_slices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(brotli, "Decompressor", OldBrotli)
    assert new("br").decode(CODED["br"]) == TEXT
    OldBrotli.produced = 0
    one = new("br", limit=1000)
    assert one.decode(brotli.compress(BOMB, quality=3)) == b"\0" * 1000
    assert one.exhausted
    assert OldBrotli.produced < len(BOMB)


@pytest.mark.parametrize("content_encoding", ["gzip", "deflate", "br", "zstd", "gzip, br"])
def test_garbage_is_said_to_be_garbage(content_encoding: str) -> None:
    one = new(content_encoding)
    assert one.decode(b"\xff\xfe\xfd this was never compressed" * 20) == b""
    assert one.failed
    assert one.decode(TEXT) == b""


@given(
    content_encoding=st.sampled_from(["gzip", "deflate", "br", "zstd", "gzip, br"]),
    data=st.binary(max_size=200),
    at=st.integers(0, 400),
)
def test_damaged_data_never_raise(content_encoding: str, data: bytes, at: int) -> None:
    good = CODED[content_encoding]
    one = new(content_encoding, limit=10_000)
    for piece in (good[:at], data, good[at:]):
        one.decode(piece)


def test_modules_are_named_only_when_needed() -> None:
    """Importing the module imports no compressor that the application did not ask for."""
    assert not {"brotli", "zstandard"} & set(vars(encoding))
