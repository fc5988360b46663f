"""Graphs of ONNX under way: nodes, constants, and sizes that are not known before they run."""

import ast
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from seq2seq_jax.errors import UserError

OPSET = 18
IR_VERSION = 9  # that of the opset; newer files need a newer onnxruntime
WAY_OUT = "export it with --format stablehlo."


class Value(NamedTuple):
    """What stands for a variable.

    Attributes:
      name: in the graph; None of a constant.
      shape: as it lies there: 1 where it is the same along an axis of the variable's.
      known: the array of a constant.
    """

    name: str | None
    shape: tuple[Any, ...]
    known: np.ndarray | None = None


class Graph:
    """A graph under way.

    Args:
      inputs: names of the inputs, and their shapes and dtypes.
      parent: the graph around this one, for the body of a loop: it is read by name.
    """

    def __init__(self, inputs: Mapping[str, jax.ShapeDtypeStruct], parent: "Graph | None" = None) -> None:
        self.top: Graph = parent.top if parent else self
        self.nodes: list[onnx.NodeProto] = []
        self._inputs = {name: (tuple(x.shape), np.dtype(x.dtype)) for name, x in inputs.items()}
        self._outputs: dict[str, tuple[tuple[Any, ...], np.dtype]] = {}
        if parent is None:
            self._constants: dict[tuple[Any, ...], str] = {}
            self._tensors: list[TensorProto] = []
            self._sizes: dict[str, str] = {}
            self._count = 0

    def inputs(self) -> list[Value]:
        """The inputs as values."""
        return [Value(name, shape) for name, (shape, _) in self._inputs.items()]

    def new_name(self) -> str:
        """A name that nothing in this graph or those around it has."""
        self.top._count += 1
        return f"v{self.top._count}"

    def add(self, op: str, *inputs: str, **attributes: Any) -> str:
        """A node with one output, whose name is returned."""
        return self.add_many(op, 1, *inputs, **attributes)[0]

    def add_many(self, op: str, num_outputs: int, *inputs: str, **attributes: Any) -> list[str]:
        """A node with several outputs."""
        outputs = [self.new_name() for _ in range(num_outputs)]
        self.nodes.append(helper.make_node(op, inputs, outputs, name=f"{op}_{outputs[0]}", **attributes))
        return outputs

    def constant(self, array: Any, dtype: Any = None) -> str:
        """A constant; equal ones are one."""
        array = np.ascontiguousarray(np.asarray(array, dtype)).reshape(np.shape(array))
        key = array.dtype.str, array.shape, hashlib.sha256(array).digest()
        if key not in self.top._constants:
            self.top._constants[key] = name = f"c{len(self.top._constants)}"
            self.top._tensors.append(numpy_helper.from_array(array, name))
        return self.top._constants[key]

    def ints(self, *values: Any) -> str:
        """A vector of integers, as shapes and axes are given."""
        return self.constant([int(value) for value in values], np.int64)

    def name(self, value: Value) -> str:
        """The name of a value as it lies, a constant's too."""
        if value.name is not None:
            return value.name
        return self.constant(value.known)

    def full(self, value: Value, shape: Sequence[Any]) -> Value:
        """The value with a whole shape."""
        if value.shape == tuple(shape):
            return value
        if value.known is not None and is_static(shape):
            return known(np.broadcast_to(value.known, [int(size) for size in shape]))
        return Value(self.add("Expand", self.name(value), self.shape(shape)), tuple(shape))

    def shape(self, shape: Sequence[Any], free: bool = False) -> str:
        """A vector of sizes; with `free` one that is not known is -1, for a reshape."""
        unknown = [size for size in shape if not is_static([size])]
        if not unknown or (free and len(unknown) == 1):
            return self.ints(*(int(size) if is_static([size]) else -1 for size in shape))
        return self.top.add("Concat", *(self.size(size) for size in shape), axis=0)

    def size(self, size: Any) -> str:
        """A vector of one size."""
        return self.ints(size) if is_static([size]) else self.top._size(str(size))

    def _size(self, text: str) -> str:
        """A size that is a symbol, or what the text of an expression of symbols says (`jax.export.symbolic_shape`)."""
        if text not in self._sizes:
            places = (
                (n, axis) for n, (shape, _) in self._inputs.items() for axis, x in enumerate(shape) if str(x) == text
            )
            name, axis = next(places, (None, 0))
            if name is None:
                self._sizes[text] = self._expression(ast.parse(text.replace("^", "**"), mode="eval").body)
            else:
                self._sizes[text] = self.add("Shape", name, start=axis, end=axis + 1)
        return self._sizes[text]

    def _expression(self, node: ast.expr) -> str:
        match node:
            case ast.Constant(value=int(value)):
                return self.ints(value)
            case ast.UnaryOp(op=ast.USub(), operand=operand):
                return self.add("Neg", self._size(ast.unparse(operand)))
            case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
                return self.add(OPERATORS[type(op)], self._size(ast.unparse(left)), self._size(ast.unparse(right)))
            case ast.Call(func=ast.Name(id=name), args=arguments) if name in FUNCTIONS:
                return self.add(FUNCTIONS[name], *(self._size(ast.unparse(argument)) for argument in arguments))
            case ast.Call(func=ast.Name(id="floordiv"), args=[left, right]):
                left, right = self._size(ast.unparse(left)), self._size(ast.unparse(right))
                return self.add("Div", self.add("Sub", left, self.add("Mod", left, right)), right)
        raise UserError(f"A size of this model, {ast.unparse(node)}, cannot be written as ONNX; {WAY_OUT}")

    def output(self, name: str, value: Value, aval: Any) -> None:
        """Makes a value, with its whole shape, an output."""
        full = self.name(self.full(value, aval.shape))
        self.nodes.append(helper.make_node("Identity", [full], [name], name=f"Identity_{name}"))
        self._outputs[name] = tuple(aval.shape), np.dtype(aval.dtype)

    def proto(self, name: str) -> onnx.GraphProto:
        """The graph as ONNX."""
        inputs, outputs = ([_info(n, *of) for n, of in part.items()] for part in (self._inputs, self._outputs))
        return helper.make_graph(self.nodes, name, inputs, outputs, self._tensors if self.top is self else [])

    def model(self, name: str) -> onnx.ModelProto:
        """The graph as a file's content."""
        opset = [helper.make_opsetid("", OPSET)]
        return helper.make_model(
            self.proto(name), opset_imports=opset, ir_version=IR_VERSION, producer_name="seq2seq_jax"
        )


OPERATORS: dict[type, str] = {ast.Add: "Add", ast.Sub: "Sub", ast.Mult: "Mul", ast.Pow: "Pow"}
FUNCTIONS = {"max": "Max", "min": "Min", "mod": "Mod"}


def known(array: Any) -> Value:
    """A value that is there when the graph is made."""
    array = np.asarray(array)
    return Value(None, array.shape, array)


def is_static(shape: Sequence[Any]) -> bool:
    """Whether all sizes are known."""
    return all(isinstance(size, (int, np.integer)) for size in shape)


def aval_of(atom: Any) -> Any:
    """Shape and dtype of a variable or a literal."""
    return atom.aval


def element_type(dtype: Any) -> int:
    """ONNX's number of a dtype."""
    return helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def _info(name: str, shape: Sequence[Any], dtype: Any) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(
        name, element_type(dtype), [int(size) if is_static([size]) else str(size) for size in shape]
    )
