"""The names that users and other packages rely on: those that the documentation promises, as it writes them."""

from __future__ import annotations

import inspect
import subprocess
import sys
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from opentelemetry.instrumentation.instrumentor import BaseInstrumentor
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter

import otel_chatdebug as chatdebug

PROMISED = {
    "configure",
    "shutdown",
    "run",
    "step",
    "reuse_step",
    "Status",
    "RunKind",
    "classify_error",
    "ChatDebugSpanProcessor",
    "ChatDebugSpanExporter",
}


def test_all_is_honest() -> None:
    """Every promised name is exported, every exported name is there, and no other public name is."""
    assert set(chatdebug.__all__) >= PROMISED
    assert sorted(chatdebug.__all__) == list(chatdebug.__all__)
    public = {
        name
        for name, value in vars(chatdebug).items()
        if not name.startswith("_") and not inspect.ismodule(value) and name != "annotations"
    }
    assert public == set(chatdebug.__all__) - {"__version__"}


def shape(function: Any, *, leave_out: tuple[str, ...] = ()) -> str:
    """A signature without its types."""
    signature = inspect.signature(function)
    parameters = [
        parameter.replace(annotation=inspect.Parameter.empty)
        for name, parameter in signature.parameters.items()
        if name not in leave_out
    ]
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def test_signatures_are_those_that_are_documented() -> None:
    assert shape(chatdebug.run) == (
        f"(kind={chatdebug.RunKind.CHAT_TURN!r}, *, chat_id=None, trigger_message_id=None, "
        "history_tip_message_id=None, root_chat_id=None, parent_chat_id=None, owner_id=None, model_config_id=None, "
        "first_message=None, completed_on=())"
    )
    assert chatdebug.RunKind.CHAT_TURN == "chat_turn"
    assert shape(chatdebug.step, leave_out=("function",)) == (
        "(*, operation=None, model=None, provider=None, chat_id=None, history_tip_message_id=None, "
        "assistant_message_id=None, metadata=None, capture='model')"
    )
    assert shape(chatdebug.reuse_step) == "()"
    assert shape(chatdebug.shutdown) == "()"
    assert shape(chatdebug.classify_error) == "(exc)"
    for made in (chatdebug.run(), chatdebug.step()):
        assert shape(made.finish) == "(status=None, *, response=None, usage=None, error=None, metadata=None)"
        assert shape(made.attach) == "()"
        assert isinstance(made.id, str)
        assert isinstance(made.status, chatdebug.Status)


def test_configure_needs_no_arguments_and_takes_keywords_only() -> None:
    parameters = inspect.signature(chatdebug.configure).parameters.values()
    assert all(parameter.kind is parameter.KEYWORD_ONLY for parameter in parameters)
    assert all(parameter.default is not parameter.empty for parameter in parameters)
    assert {"tracer_provider", "classify_error", "http_spans", "database_url"} <= {each.name for each in parameters}


@pytest.mark.parametrize(
    "call",
    [
        lambda: chatdebug.run("chat_turn", "c"),  # type: ignore[call-overload]
        lambda: chatdebug.run(chat="c"),  # type: ignore[call-overload]
        lambda: chatdebug.step(modl="m"),  # type: ignore[call-overload]
        lambda: chatdebug.configure(nonsense=1),  # type: ignore[call-arg]
    ],
)
def test_a_misspelt_argument_is_a_type_error(call: Any) -> None:
    with pytest.raises(TypeError):
        call()


def test_statuses_and_kinds_are_the_documented_strings() -> None:
    assert [str(status) for status in chatdebug.Status] == ["in_progress", "interrupted", "error", "completed"]
    assert sorted(chatdebug.Status, key=lambda status: status.priority) == list(chatdebug.Status)
    assert {"chat_turn", "compaction", "title_generation", "quickgen"} <= {str(kind) for kind in chatdebug.RunKind}


@pytest.mark.parametrize("name", ["chatdebug_httpx", "chatdebug_httpx2"])
def test_the_instrumentors_can_be_loaded_by_their_entry_points(name: str) -> None:
    (point,) = entry_points(group="opentelemetry_instrumentor", name=name)
    instrumentor = point.load()()
    assert isinstance(instrumentor, BaseInstrumentor)
    (library,) = instrumentor.instrumentation_dependencies()
    assert library.split()[0] == name.removeprefix("chatdebug_")


def test_the_exporters_can_be_loaded_by_their_entry_points() -> None:
    points = {point.name: point.load() for point in entry_points(group="opentelemetry_traces_exporter")}
    assert points["chatdebug"] is chatdebug.ChatDebugSpanExporter
    assert issubclass(points["chatdebug_otlp"], SpanExporter)
    assert points["chatdebug_otlp"] is not points["chatdebug"]


def test_the_processor_may_be_added_by_hand_and_is_inert_alone() -> None:
    processor = chatdebug.ChatDebugSpanProcessor()
    assert isinstance(processor, SpanProcessor)
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(processor)
    with provider.get_tracer("t").start_as_current_span("s"):
        pass
    assert provider.force_flush() is True
    provider.shutdown()


def test_importing_the_package_and_configuring_it_imports_no_client_and_no_sdk(tmp_path: Path) -> None:
    """Else `httpx2.alias_httpx()` would not work afterwards. SQLAlchemy is paid for when something is written."""
    code = (
        "import sys, otel_chatdebug\n"
        "import otel_chatdebug.capture.instrumentor, otel_chatdebug.pipeline.exporter\n"
        f"otel_chatdebug.configure(database_url='sqlite:///{tmp_path}/chatdebug.db')\n"
        "print(*sys.modules)"
    )
    imported = subprocess.check_output([sys.executable, "-c", code], text=True, timeout=60).split()
    assert "otel_chatdebug" in imported
    assert not {"httpx", "httpx2", "openai", "anthropic", "groq", "sqlalchemy", "alembic"} & set(imported)
