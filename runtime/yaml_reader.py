"""YAML as configurations have it: mappings, lists, texts, numbers, switches, and no more.

A file that means something else is refused with the field that does: a tag, a date, a number that
no setting could take, a key that is set twice, nesting and repetition without end.
"""

from __future__ import annotations

from typing import Any

import yaml
from yaml.composer import ComposerError
from yaml.nodes import CollectionNode, MappingNode, Node, ScalarNode

from runtime.errors import ConfigError
from runtime.files import MAX_NESTING, shown

PLAIN = ("map", "seq", "str", "int", "float", "bool", "null", "merge")
PREFIX = "tag:yaml.org,2002:"
MAX_NODES = 100_000  # with every alias written out
MAX_INTEGER = 2**64


class _Loader(yaml.SafeLoader):
    """The composer of PyYAML that knows which field it is at, and looks at every value."""

    def __init__(self, text: str):
        super().__init__(text)
        self.path: list[str | int | None] = []  # from the document to the value

    def compose_node(self, parent: Node | None, index: Any) -> Node | None:
        self.path.append(index.value if isinstance(index, ScalarNode) else index)
        if len(self.path) > MAX_NESTING + 1:
            mark = self.peek_event().start_mark
            raise self.refusal(f"nested more than {MAX_NESTING} levels deep", mark)
        node = super().compose_node(parent, index)
        if node is not None:
            self.check(node)
        self.path.pop()
        return node

    def check(self, node: Node) -> None:
        """Raise ComposerError for a value that no setting could take."""
        kind, mark = node.tag.removeprefix(PREFIX), node.start_mark
        if kind == "timestamp":
            raise self.refusal(f"{node.value!r} is read as a date; put it in quotes", mark)
        if kind not in PLAIN:
            raise self.refusal(f"the tag {node.tag} is not read", mark)
        if isinstance(node, MappingNode):
            self.check_keys(node)
        elif isinstance(node, ScalarNode) and kind in ("int", "float", "bool"):
            try:
                value = self.construct_object(node)
            except (ValueError, KeyError, IndexError) as error:  # as PyYAML has it
                raise self.refusal(f"{shown(node.value)} is no {kind}", mark) from error
            if kind == "int" and abs(value) >= MAX_INTEGER:
                raise self.refusal(f"{shown(node.value)} is too large", mark)

    def check_keys(self, node: MappingNode) -> None:
        """PyYAML takes the last of two equal keys without a word; here they are refused."""
        seen = set()
        for key, _ in node.value:
            if not isinstance(key, ScalarNode):
                raise self.refusal("a key is no text", key.start_mark)
            if key.value in seen:
                problem = f"{shown(key.value)} is set twice"
                raise ComposerError(None, None, problem, key.start_mark)
            seen.add(key.value)

    def refusal(self, problem: str, mark: yaml.Mark) -> ComposerError:
        """The error that names the field and the line."""
        field = ".".join(str(part) for part in self.path if part is not None)
        return ComposerError(None, None, f"{field[:80]}: {problem}" if field else problem, mark)


def parse_yaml(text: str, origin: str) -> Any:
    """What a YAML text says. Raises ConfigError naming the origin and the field or line."""
    try:
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _written_out(node, {}) > MAX_NODES:
            raise ConfigError(f"{origin}: its aliases repeat more than {MAX_NODES} values")
        return loader.construct_document(node)
    except (yaml.YAMLError, RecursionError) as error:
        raise ConfigError(f"{origin}: not valid YAML: {error}") from error


def _written_out(node: Node, known: dict[int, float]) -> float:
    """Nodes below this one with every alias written out; infinite where one holds itself."""
    if not isinstance(node, CollectionNode):
        return 1
    if id(node) not in known:
        known[id(node)] = float("inf")  # until it is counted
        size = 1.0
        for part in node.value:
            for inner in part if isinstance(part, tuple) else (part,):
                size += _written_out(inner, known)
        known[id(node)] = size
    return known[id(node)]
