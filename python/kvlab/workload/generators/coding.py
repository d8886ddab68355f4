"""What coding agents read and say: tools, thoughts, calls, output, functions and tables."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from kvlab.workload.generators.prose import CODE, OUTPUT, sized

if TYPE_CHECKING:
    import random

__all__ = ["Coding"]

_MODULES = (
    "invoice", "calendar", "parser", "session", "archive", "router", "ledger", "catalogue",
    "upload", "reminder", "search", "export",
)  # fmt: skip
_VERBS = (
    "merge", "validate", "load", "split", "rename", "flush", "encode", "resolve", "schedule",
    "compare", "truncate", "normalise",
)  # fmt: skip
_NOUNS = (
    "rows", "dates", "paths", "totals", "headers", "offsets", "entries", "labels", "ranges",
    "tokens", "columns", "keys",
)  # fmt: skip
_FAULTS = (
    "returns an empty list when the input has one item",
    "treats midnight as the previous day",
    "drops the last line of a file without a newline",
    "raises KeyError for a key that differs in case",
    "rounds half a cent down",
    "keeps a file open after an error",
    "sorts numbers as text",
    "reads the whole file into memory",
    "ignores the time zone of the second argument",
    "runs the callback twice after a retry",
)
_THOUGHTS = (
    "The failure is in {module}: {verb}_{noun} {fault}.",
    "I will read {module}.py before I change anything.",
    "The test expects {number} {noun}, and we get {other}.",
    "A small change in {verb}_{noun} should be enough; callers in {module2} stay as they are.",
    "Next I run the tests of {module} alone, then all of them.",
    "The same pattern occurs in {module2}, so it is worth a look, too.",
    "Before I edit I check who calls {verb}_{noun}.",
)
_ORDERS = (
    "find out whether {verb}_{noun} in {module}.py {fault}",
    "look for other callers of {verb}_{noun} than {module2}.py",
    "check the tests of {module} for a case with {number} {noun}",
    "see since when {verb}_{noun} of {module} {fault}",
    "compare {verb}_{noun} in {module}.py with its twin in {module2}.py",
    "say what would break in {module2} if {verb}_{noun} returned {noun} in another order",
)
_CONVENTIONS = (
    "- Functions of {module} return new lists; they never change the {noun} that they are given.",
    "- {module}.py may import {module2}.py, not the other way round.",
    "- Every fix of {verb}_{noun} has a test in tests/test_{module}.py that fails without it.",
    "- {noun} are counted from 0 in {module} and from 1 in what users see.",
    "- At most {number} {noun} are read at once; {module} asks for more when it needs them.",
    "- Errors of {verb}_{noun} name the file and the line, and are raised as {module} errors.",
    "- Do not rename {verb}_{noun}: {module2} looks it up by its name.",
)
_OUTPUT = (
    "src/{module}.py:{other}:    def {verb}_{noun}(self, {noun}, limit={number}):",
    "src/{module2}.py:{other}:        return self.{module}.{verb}_{noun}(limit={number})",
    "FAILED tests/test_{module}.py::test_{verb}_{noun} - AssertionError: expected {number}, got {other}",
    "PASSED tests/test_{module2}.py::test_{verb}_{noun}",
    "-rw-r--r--  {other} bytes  src/{module}/{noun}.py",
    "    if len({noun}) > {number}:  # {module} takes no more",
    "        log.debug('{verb} %d {noun} of {module}', {other})",
    "    # known: {verb}_{noun} {fault}",
)
_TOOLS: tuple[tuple[str, str, dict[str, str]], ...] = (
    ("read_file", "Returns lines of a file, numbered. Give a range for long files.",
     {"path": "string", "first": "integer", "last": "integer"}),
    ("search", "Lists lines that contain a text, with file and number, 50 at most.",
     {"text": "string", "folder": "string"}),
    ("run_tests", "Runs the tests of a file or of all files and returns what failed.",
     {"path": "string", "verbose": "boolean"}),
    ("edit_file", "Replaces lines of a file. The lines must have been read before.",
     {"path": "string", "first": "integer", "last": "integer", "text": "string"}),
    ("list_files", "Lists the files of a folder with their sizes.", {"folder": "string"}),
    ("find_callers", "Lists the places where a function is called.", {"function": "string"}),
    ("show_history", "Shows the last changes of a file with their messages.",
     {"path": "string", "count": "integer"}),
    ("show_changes", "Shows what was changed since the start of the task.", {}),
    ("create_file", "Writes a new file. Fails if there is one.", {"path": "string", "text": "string"}),
    ("run_command", "Runs a command of the allowed ones, for 60 seconds at most.",
     {"command": "string"}),
    ("check_types", "Runs the type checker over a file.", {"path": "string"}),
    ("format_file", "Formats a file in the style of the project.", {"path": "string"}),
    ("read_notes", "Returns the notes of earlier tasks on a module.", {"module": "string"}),
    ("write_note", "Adds a note on a module for later tasks.", {"module": "string", "text": "string"}),
    ("finish", "Ends the task with a summary of what was changed and why.", {"summary": "string"}),
)  # fmt: skip
_CALLS: tuple[tuple[str, dict[str, str]], ...] = (
    ("read_file", {"path": "src/{module}.py"}),
    ("search", {"text": "{verb}_{noun}", "folder": "src"}),
    ("run_tests", {"path": "tests/test_{module}.py"}),
    ("find_callers", {"function": "{verb}_{noun}"}),
    ("show_history", {"path": "src/{module2}.py"}),
    ("edit_file", {"path": "src/{module}.py", "text": "    {noun} = list({noun})"}),
)
_TABLES = (
    "orders", "customers", "parcels", "invoices", "payments", "products", "warehouses", "returns",
    "suppliers", "contracts", "meters", "readings", "tariffs", "tickets", "journeys", "stations",
    "branches", "loans", "readers", "repairs", "appointments", "deliveries", "vouchers", "reviews",
)  # fmt: skip
_COLUMNS = (
    ("created_at", "timestamp not null"), ("closed_at", "timestamp"), ("amount", "numeric(12, 2)"),
    ("quantity", "integer not null"), ("status", "text not null"), ("city", "text"),
    ("customer_id", "integer references customers"), ("product_id", "integer references products"),
    ("discount", "numeric(5, 2)"), ("currency", "text"), ("weight_grams", "integer"),
    ("due_on", "date"), ("is_paid", "boolean"), ("priority", "integer"), ("note", "text"),
    ("rating", "integer"), ("started_at", "timestamp"), ("channel", "text"),
)  # fmt: skip
_QUESTIONS = (
    "the number of {table} a day in the last {number} days",
    "the sum of {column} of {table} for each {column2}",
    "the {number} {table} with the largest {column}",
    "all {table} that have no {column2}",
    "the share of {table} with a {column} above {other}",
    "the median {column} of {table} by {column2}",
    "{table} whose {column} changed more than {number} times",
)
_FUNCTIONS = (
    "{verb}_{noun} for {noun} that are sorted already",
    "{verb}_{noun} that stops after {number} {noun}",
    "{verb}_{noun}, where equal {noun} stay in their order",
    "{verb}_{noun} without a second copy of the {noun}",
    "a version of {verb}_{noun} that leaves out {noun} above {other}",
    "{verb}_{noun}, raising ValueError for more than {number} {noun}",
)


class Coding:
    """Sentences, calls and code, chosen by a random generator.

    Args:
        rng: What all choices come from.
    """

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng

    def bug(self) -> str:
        """What an agent is asked to do."""
        return self._fill(
            "In our package, {verb}_{noun} of the module {module} {fault}. Find the cause, write a "
            "test that fails without the change, and make it pass. Do not change {module2}."
        )

    def order(self) -> str:
        """A piece of work for another agent, as a phrase."""
        return self._fill(self._rng.choice(_ORDERS))

    def thought(self) -> str:
        """What an agent says between two calls of tools."""
        return self._fill(self._rng.choice(_THOUGHTS))

    def thoughts(self, tokens: int) -> str:
        """What an agent reports."""
        return sized(tokens, self.thought, chars_per_token=CODE)

    def call(self) -> str:
        """A thought and a call of a tool."""
        name, arguments = self._rng.choice(_CALLS)
        text = json.dumps({"tool": name, "arguments": arguments})
        return f"{self.thought()}\n{self._fill(text)}"

    def output(self, tokens: int) -> str:
        """Lines that tools print: of a listing, a search, a test or a file."""
        return sized(
            tokens,
            lambda: self._fill(self._rng.choice(_OUTPUT)),
            "\n",
            chars_per_token=OUTPUT,
        )

    def tools(self, tokens: int) -> str:
        """Descriptions of tools as JSON, in random order, and rules for the code behind them."""
        left = self._rng.sample(_TOOLS, len(_TOOLS))

        def line() -> str:
            if not left:
                return self._fill(self._rng.choice(_CONVENTIONS))
            name, about, arguments = left.pop()
            return json.dumps({"name": name, "description": about, "arguments": arguments})

        return "Tools, and what holds in this code base:\n" + sized(
            tokens, line, "\n", chars_per_token=CODE
        )

    def tables(self, tokens: int) -> str:
        """Tables of a database, as they are created."""
        names: list[str] = []

        def table() -> str:
            if not names:
                names.extend(self._rng.sample(_TABLES, len(_TABLES)))
            columns = self._rng.sample(_COLUMNS, self._rng.randint(4, 9))
            lines = [
                "    id integer primary key",
                *(f"    {name} {kind}" for name, kind in columns),
            ]
            return f"create table {names.pop()} (\n" + ",\n".join(lines) + "\n);"

        return sized(tokens, table, "\n", chars_per_token=CODE)

    def functions(self, tokens: int) -> str:
        """Functions that may be called."""
        return sized(
            tokens,
            lambda: self._fill(
                "def {verb}_{noun}({noun}: list[int], limit: int = {number}) -> list[int]:\n"
                f'    """{self._rng.choice(_CONVENTIONS)[2:]}"""\n'
            ),
            "\n",
            chars_per_token=CODE,
        )

    def wanted(self, klass: str) -> str:
        """What a query ("sql") or a function ("code") should give."""
        return self._fill(self._rng.choice(_QUESTIONS if klass == "sql" else _FUNCTIONS))

    def _fill(self, template: str) -> str:
        """A template with words; other braces stay as they are."""
        module, module2 = self._rng.sample(_MODULES, 2)
        column, column2 = self._rng.sample(_COLUMNS, 2)
        words = {
            "module": module,
            "module2": module2,
            "verb": self._rng.choice(_VERBS),
            "noun": self._rng.choice(_NOUNS),
            "fault": self._rng.choice(_FAULTS),
            "table": self._rng.choice(_TABLES),
            "column": column[0],
            "column2": column2[0],
            "number": str(self._rng.randint(2, 90)),
            "other": str(self._rng.randint(2, 400)),
        }
        for word, value in words.items():
            template = template.replace(f"{{{word}}}", value)
        return template
