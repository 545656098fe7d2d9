"""An ONNX graph in the making: nodes by hand, and parts that torch has traced put in among them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

OPSET = 18
TYPES = {"uint8": TensorProto.UINT8, "float32": TensorProto.FLOAT, "int64": TensorProto.INT64}


@dataclass(frozen=True)
class Port:
    """What a graph takes in or puts out.

    Attributes:
        made: Name of what makes it; of an input its own.
        name: Name of the port.
        kind: One of ``TYPES``.
        shape: Lengths of its axes; a text is one that is known when it runs.
    """

    made: str
    name: str
    kind: str
    shape: Sequence[int | str]

    def info(self) -> onnx.ValueInfoProto:
        """Return it as ONNX describes it."""
        return helper.make_tensor_value_info(self.name, TYPES[self.kind], self.shape)


class Graph:
    """Nodes and constants; each call adds a node and returns the name of what it puts out.

    Constants of the same content are kept once, so that looks that share a trunk share its weights.
    """

    def __init__(self, parent: Graph | None = None) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self._constants: dict[str, onnx.TensorProto] = {} if parent is None else parent._constants
        self._names: list[int] = [0] if parent is None else parent._names

    def __call__(self, op: str, *inputs: str, **attributes: Any) -> str:
        """Add a node of one output."""
        (name,) = self.node(op, inputs, 1, **attributes)
        return name

    def node(self, op: str, inputs: Sequence[str], outputs: int, **attributes: Any) -> list[str]:
        """Add a node, and return the names of its outputs."""
        names = [self._fresh() for _ in range(outputs)]
        self.nodes.append(helper.make_node(op, list(inputs), names, **attributes))
        return names

    def constant(self, value: Any, dtype: Any = None) -> str:
        """Return the name of a constant."""
        return self._kept(numpy_helper.from_array(np.asarray(value, dtype, order="C")))

    def floats(self, *values: float) -> str:
        """Return the name of float32 numbers, of a single one without an axis."""
        return self.constant(values[0] if len(values) == 1 else values, np.float32)

    def ints(self, *values: int) -> str:
        """Return the name of a list of whole numbers, as axes and shapes are given."""
        return self.constant(values, np.int64)

    def either(self, condition: str, then: Callable[[Graph], str], other: Callable[[Graph], str]) -> str:
        """Return one of two outputs; only the part that makes it is run."""
        branches = {}
        for key, make in (("then_branch", then), ("else_branch", other)):
            inner = Graph(self)
            made = inner("Identity", make(inner))
            branches[key] = helper.make_graph(
                inner.nodes, key, [], [helper.make_empty_tensor_value_info(made)]
            )
        return self("If", condition, **branches)

    def inline(self, model: onnx.ModelProto, inputs: Sequence[str]) -> list[str]:
        """Add all nodes of a model whose inputs are these, and return the names of its outputs."""
        graph = model.graph
        assert not model.functions, "functions would have to be inlined first"
        assert {each.domain: each.version for each in model.opset_import}[""] == OPSET
        name_of = {given.name: name for given, name in zip(graph.input, inputs, strict=True)}
        name_of |= {each.name: self._kept(each) for each in graph.initializer}
        name_of[""] = ""
        for node in graph.node:
            assert node.domain == "", node.domain
            assert not any(each.HasField("g") for each in node.attribute), node.op_type
            own = onnx.NodeProto()
            own.CopyFrom(node)
            own.name = ""
            own.ClearField("metadata_props")
            own.ClearField("doc_string")
            del own.input[:], own.output[:]
            own.input.extend(name_of[name] for name in node.input)
            name_of |= {name: self._fresh() for name in node.output if name}
            own.output.extend(name_of[name] for name in node.output)
            self.nodes.append(own)
        return [name_of[each.name] for each in graph.output]

    def model(
        self,
        inputs: Sequence[Port],
        outputs: Sequence[Port],
        metadata: dict[str, str],
        defaults: dict[str, Any],
    ) -> onnx.ModelProto:
        """Return the whole.

        Args:
            inputs: What goes in.
            outputs: What comes out.
            metadata: Texts by name.
            defaults: Values of inputs that need not be given.
        """
        nodes = [*self.nodes]
        nodes += [helper.make_node("Identity", [each.made], [each.name]) for each in outputs]
        kept = list(self._constants.values())
        for name, value in defaults.items():
            kept.append(numpy_helper.from_array(np.asarray(value), name))
        graph = helper.make_graph(
            nodes,
            "racnn",
            [each.info() for each in inputs],
            [each.info() for each in outputs],
            kept,
        )
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        model.producer_name = "racnn"
        helper.set_model_props(model, metadata)
        return model

    def _fresh(self) -> str:
        self._names[0] += 1
        return f"v{self._names[0]}"

    def _kept(self, tensor: onnx.TensorProto) -> str:
        value = numpy_helper.to_array(tensor)
        content = hashlib.sha256(f"{value.dtype} {value.shape} ".encode() + value.tobytes()).hexdigest()
        if content not in self._constants:
            self._constants[content] = numpy_helper.from_array(value, f"c{len(self._constants)}")
        return self._constants[content].name
