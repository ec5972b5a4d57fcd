"""What any PyTorch module runs on an input, in the common terms of `shared/operations.py`; values keep PyTorch's axes.

The graph is that of `torch.export`, whatever the style of the module's code: modules, functions and operators, nested and
shared.
"""

import contextlib
import copy
import itertools
import logging
import operator
import re
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import nn
from torch._ops import HigherOrderOperator
from torch.export import ExportedProgram
from torch.fx import GraphModule, Node
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_flatten_with_path, tree_map, tree_unflatten

from shared.checks import Error
from shared.operations import Operation

from . import terms
from .composites import Composite, composites

FUNCTIONS_OF_PYTORCH = Path(torch.__file__).parent
WRAPPERS = ("wrap_with_set_grad_enabled", "wrap_with_autocast")  # operators that run a graph in a context


class Part(NamedTuple):
    """How an operation is run: the nodes, in order, whose last has the result."""

    nodes: list[Node]
    feeds: list[Node]  # the nodes of its inputs
    roles: dict[str, Any]  # {role: node or number}
    transposed: bool  # whether PyTorch has the kernel as (out, in)


def record(
    module: nn.Module | ExportedProgram, inputs: Sequence[np.ndarray], training: bool = False, random: bool = True
) -> "Recording":
    """What a module, or the program of a `torch.export` file, runs on these inputs, in float64.

    A copy is recorded; the module itself stays as it is. What is written in place through a view, as a mask filled slice by
    slice, is right in `values`, but not where such a slice runs alone. Whole numbers stay what they are. With `training`, batch
    norms use the batch's statistics, and what runs within `torch.no_grad` passes no gradient on. Without `random`, modules
    that hold no weights, as dropout, run as in evaluation. Raises `Error` for a module that cannot run on the inputs or cannot
    be traced, and for the program of a file in training.
    """
    if isinstance(module, ExportedProgram):
        module = module.module()
    name = type(module).__name__
    copied = _copied(module)
    if not isinstance(module, GraphModule):  # an exported program has its mode already
        copied.train(training)
    elif training:
        raise Error("a torch.export program runs as it was exported: to train it, pass the module itself")
    dropouts = [] if random else _silenced(copied)
    tensors = tuple(_tensor(each) for each in inputs)
    try:
        with torch.set_grad_enabled(training), _quiet(), _Double():
            program = torch.export.export(copied, tensors, strict=False)
    except Exception as error:  # whatever the module's own code raises
        line = next(iter(f"{error}".strip().splitlines()), type(error).__name__)
        raise Error(f"{name} cannot be recorded on inputs of {_shapes(inputs)}: {line}") from None
    _inline(program.graph_module, training)
    _check_terms(program, name)
    if not random:
        dropouts += terms.silence(program.graph)
    return Recording(program, dropouts)


def _copied(module: nn.Module) -> nn.Module:
    """A deep copy in float64.

    PyTorch refuses to copy what is computed from others; `torch.nn.utils.weight_norm` keeps such a tensor, and makes it anew at
    each run.
    """
    kept = [each for part in module.modules() for each in vars(part).values() if isinstance(each, torch.Tensor)]
    try:
        return copy.deepcopy(module, {id(each): each.detach().clone() for each in kept if not each.is_leaf}).cpu().double()
    except Exception as error:  # whatever an attribute raises
        raise Error(f"{type(module).__name__} cannot be copied: {error}") from None


class _Double(TorchFunctionMode):
    """Any floating type that code asks for is float64, as it is in Keras's recordings: no operator takes two types."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in (torch.Tensor.float, torch.Tensor.half, torch.Tensor.bfloat16):
            func = torch.Tensor.double
        if func in (torch.Tensor.type_as, torch.ops.aten.type_as.default) and len(args) == 2:
            func, args = torch.Tensor.to, (args[0], args[1].dtype)  # which reads one tensor alone
        args, kwargs = tree_map(_wide, (args, kwargs or {}))
        return func(*args, **kwargs)


def _wide(each: Any) -> Any:
    return torch.float64 if isinstance(each, torch.dtype) and each.is_floating_point else each


def _check_terms(program: ExportedProgram, name: str) -> None:
    """Raise `Error` for an operator that has other graphs within, or gives no tensors."""
    for node in (each for each in program.graph.nodes if each.op == "call_function"):
        known = isinstance(node.meta.get("val"), torch.Tensor | tuple | list) or _is_check(node)
        if isinstance(node.target, HigherOrderOperator) or not known:
            place = f" ({Path(source).name})" if (source := _source(node)) else ""
            raise Error(f"{name}: runs PyTorch's {terms.base(node)}{place}, which has no common term")


def _is_check(node: Node) -> bool:
    """Whether an operator gives nothing and changes nothing, as those that torch.export puts before each cast."""
    schema = getattr(node.target, "_schema", None)
    return node.meta.get("val") is None and not node.users and schema is not None and not schema.is_mutable


def _silenced(module: nn.Module) -> list[tuple[str, float]]:
    """Put the modules without weights into evaluation mode; (name, rate) of those that drop something."""
    found = []
    for name, part in module.named_modules():
        rates = [getattr(part, key, None) for key in ("p", "drop_prob")]
        stateless = next(itertools.chain(part.parameters(), part.buffers()), None) is None
        if stateless and part.training:
            part.eval()
            found += [(name, float(rate)) for rate in rates if isinstance(rate, float) and rate > 0]
    return found


def _inline(module: GraphModule, training: bool) -> None:
    """Put what runs within `torch.no_grad` or `torch.autocast` among the other nodes; in training, detach results of the first.

    Autocast leaves float64 as it is.
    """
    graph = module.graph
    for node in [each for each in graph.nodes if str(each.target).startswith(WRAPPERS)]:
        at = next(place for place, each in enumerate(node.args) if isinstance(each, Node))
        part, *operands = node.args[at:]
        detaches = training and at == 1 and not node.args[0]
        _inline(getattr(module, part.target), training)
        inner = getattr(module, part.target).graph
        places = [each for each in inner.nodes if each.op == "placeholder"]
        with graph.inserting_before(node):
            results: Any = graph.graph_copy(inner, dict(zip(places, operands, strict=True)))
            for user in list(node.users):
                result = results[user.args[1]]
                if detaches:
                    detached = graph.call_function(torch.ops.aten.detach.default, (result,))
                    detached.meta, result = dict(result.meta), detached
                user.replace_all_uses_with(result)
                graph.erase_node(user)
        graph.erase_node(node)


def load(path: str | Path) -> nn.Module:
    """The module in a file written by `torch.export.save`. Raises `Error` for any other file."""
    try:
        with _quiet():
            return torch.export.load(path).module()
    except Exception as error:  # what zipfile, json and PyTorch raise has no common class
        line = next(iter(f"{error}".strip().splitlines()), type(error).__name__)
        raise Error(f"{path}: not a program that torch.export can load: {line}") from None


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the messages of PyTorch, which logs what it raises."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        yield
    finally:
        logging.disable(before)


def _tensor(array: np.ndarray) -> torch.Tensor:
    tensor = torch.tensor(np.asarray(array))
    return tensor.double() if tensor.is_floating_point() else tensor


def _shapes(inputs: Sequence[np.ndarray]) -> str:
    return ", ".join("x".join(map(str, np.shape(each))) for each in inputs)


class Recording:
    """A `shared.operations.Recording` of a PyTorch module."""

    framework = "PyTorch"

    def __init__(self, program: ExportedProgram, dropouts: Sequence[tuple[str, float]] = ()) -> None:
        self.dropouts = list(dropouts)
        signature = program.graph_signature
        names = {**signature.inputs_to_parameters, **signature.inputs_to_buffers, **signature.inputs_to_lifted_tensor_constants}
        given = {**program.state_dict, **program.constants}
        self._program = program  # holds the module's tensors
        self._nodes = [node for node in program.graph.nodes if node.op == "call_function" and not _is_check(node)]
        self._static: dict[Node, torch.Tensor] = {}
        self._names: dict[Node, str] = {}  # of weights and other constants, as the module has them
        self._inputs: list[Node] = []
        trained = {name for name in signature.inputs_to_parameters.values() if program.state_dict[name].requires_grad}
        self._trained = {node for node in program.graph.nodes if node.op == "placeholder" and names.get(node.name) in trained}
        for node in program.graph.nodes:
            if node.op == "placeholder" and node.name in names:
                self._static[node], self._names[node] = given[names[node.name]], names[node.name]
            elif node.op == "placeholder":
                self._inputs.append(node)
        self._computed: set[Node] = set()  # from weights that are trained
        draws = [node for node in self._nodes if terms.draws(node)]  # before they are folded
        with torch.no_grad():
            self._fold_constants()
        self.inputs = [node.name for node in self._inputs]
        self.operations: list[Operation] = []
        self._parts: dict[str, Part] = {}
        self._of_node: dict[Node, str] = {node: node.name for node in self._inputs}  # where a node's value is
        kept = {*signature.inputs_to_parameters, *signature.inputs_to_buffers}
        weights = self._computed | {node for node in self._static if node.name in kept}
        self._read_nodes({each.nodes[-1]: each for each in composites(self._nodes, self._static, weights, _call)})
        written = [self._of_node.get(node, node.name) for node in self._nodes if terms.writes_on_view(node)]
        note = f"what is written in place on part of a value cannot be replayed by one operation: {', '.join(written)}"
        self.notes = [note] if written else []
        self.random = [self._of_node.get(node) or self._place([node]) for node in draws]
        output = next(node for node in program.graph.nodes if node.op == "output")
        returned = [output.args[0]] if isinstance(output.args[0], Node) else output.args[0]
        places = [node if isinstance(node, Node) and node in self._of_node else None for node in returned]
        self.outputs = [self._of_node[node] for node in places if node]
        self.keys = [key for key, node in zip(_keys(program, len(places)), places, strict=True) if node]

    def _fold_constants(self) -> None:
        """Work out what depends on no input, once: a kernel that is standardised first, positions, masks."""
        for node in list(self._nodes):
            if not self._operands(node) - self._static.keys():
                operands = {each: self._static[each].clone() for each in self._operands(node)}
                value = _call(node, operands)
                if self._operands(node) & (self._trained | self._computed):
                    self._computed |= {node} if isinstance(value, torch.Tensor) else set(node.users)
                self._nodes.remove(node)
                if isinstance(value, torch.Tensor):
                    self._static[node], self._names[node] = value, node.name
                else:
                    self._static |= {user: value[user.args[1]] for user in node.users if user.target is operator.getitem}
                    self._names |= {user: user.name for user in node.users}

    @staticmethod
    def _operands(node: Node) -> set[Node]:
        return set(node.all_input_nodes)

    def _is_static(self, operand: Any) -> bool:
        return operand in self._static if isinstance(operand, Node) else isinstance(operand, int | float)

    def _read_nodes(self, functions: Mapping[Node, Composite]) -> None:
        """Bring the nodes to common terms, in order; `functions` are those in several operators, by their last."""
        within = {node for each in functions.values() for node in each.nodes[:-1]}
        at = 0
        while at < len(self._nodes):
            node = self._nodes[at]
            at += 1
            several = terms.local_response(self._nodes[at - 1 : at + terms.LONGEST])
            if several:
                self._add(*several)
                at += len(several[0]) - 1
            elif node in self._static or node in within or isinstance(node.meta["val"], tuple | list):
                continue  # what a getitem takes out is the operation
            elif node in functions:
                nodes, root, attributes = functions[node]
                self._add(nodes, terms.Term("activation", attributes, [root], {}))
            elif terms.base(node) in terms.SAME:
                self._of_node[node] = self._of_node[node.all_input_nodes[0]]
            elif node.target is operator.getitem:
                source = node.args[0]
                assert isinstance(source, Node)
                self._add([source, node], terms.term(node, self._is_static))
            else:
                self._add([node], terms.term(node, self._is_static))

    def _add(self, nodes: list[Node], found: terms.Term) -> None:
        name, node = self._place(nodes), nodes[-1]
        roles = {role: value for role, value in found.roles.items() if value is not None}
        if found.kind == "other":
            feeds = [each for one in nodes for each in one.all_input_nodes if each not in self._static and each not in nodes]
            roles = {each.name: each for one in nodes for each in one.all_input_nodes if each in self._static}
        else:
            feeds = [each for each in found.operands if not self._is_static(each)]
        alternate = tuple(place for place, each in enumerate(found.operands) if each in feeds)
        self.operations.append(
            Operation(
                name, found.kind, tuple(self._of_node[each] for each in feeds), terms.shape(node), found.attributes,
                {role: self._names.get(value, "a number") for role, value in roles.items()}, _source(node),
                "+".join(str(each.target) for each in nodes if each.target is not operator.getitem),
                alternate if len(alternate) < len(found.operands) else (),
            )
        )  # fmt: skip
        self._of_node[node] = name
        self._parts[name] = Part(nodes, feeds, roles, found.transposed)

    def _place(self, nodes: list[Node]) -> str:
        """The name of an operation: the module that runs it and, unless the module does nothing else, the operator."""
        stack = list(nodes[-1].meta.get("nn_module_stack", {}).values())
        path = re.sub(r"@\d+", "", stack[-1][0]) if stack else ""
        kind = stack[-1][1] if stack else ""
        kind = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        alone = path and kind.startswith("torch.nn.modules.") and terms.base(nodes[-1]) not in ("cat", "getitem")
        name = path if alone else ".".join(filter(None, (path, terms.base(nodes[-1]))))
        number = 2
        taken = {*self._parts, *self.inputs}
        while name in taken:
            name = f"{name.partition('#')[0]}#{number}"
            number += 1
        return name

    def values(self, inputs: Sequence[np.ndarray], only: Collection[str] | None = None) -> dict[str, np.ndarray]:
        """{name: result of each operation, and each input} when the network runs on `inputs`; with `only`, of these names."""
        found: dict[str, np.ndarray] = {}
        with torch.no_grad():
            for node, value in self._run(inputs):
                name = self._of_node.get(node)
                if name and name not in found and (only is None or name in only):
                    found[name] = value.numpy().copy()  # before an operator in place writes on it
        return found

    def _run(
        self, inputs: Sequence[np.ndarray], leaves: Mapping[Node, torch.Tensor] | None = None
    ) -> Iterable[tuple[Node, Any]]:
        """Each node and its value, in order, held until it is last read; ends with the buffers as the run has left them."""
        values: dict[Node, Any] = {node: value.clone() if _is_written(node) else value for node, value in self._static.items()}
        values |= leaves or {}
        last = {each: node for node in self._nodes for each in self._operands(node)}
        for node, array in zip(self._inputs, inputs, strict=True):
            values.setdefault(node, _tensor(array))
            yield node, values[node]
        for node in self._nodes:
            if node not in self._static:
                values[node] = _call(node, values)
                yield node, values[node]
                for each in (node, *self._operands(node)):
                    if last.get(each, node) is node and each not in self._static:
                        del values[each]
        for node in self._static:
            yield node, values[node]

    def apply(self, name: str, inputs: Sequence[np.ndarray], weights: Mapping[str, np.ndarray] | None = None) -> np.ndarray:
        """The result of one operation alone on `inputs`, with `weights` in place of its own, as `shared.operations` has it."""
        part = self._parts[name]
        values: dict[Node, Any] = {}
        needed = {each for node in part.nodes for each in node.all_input_nodes}
        values |= {node: self._static[node].clone() for node in needed if node in self._static}
        values |= {node: _tensor(array) for node, array in zip(part.feeds, inputs, strict=True)}
        numbers = {}
        for role, array in (weights or {}).items():
            own = part.roles[role]
            if isinstance(own, Node):
                values[own] = _tensor(array.T if part.transposed and role == "kernel" else array).reshape(values[own].shape)
            else:
                numbers[own] = array.item()
        with torch.no_grad():
            for node in part.nodes:
                values[node] = _call(node, values, numbers)
        return np.asarray(values[part.nodes[-1]].numpy())

    def weight(self, name: str, role: str) -> np.ndarray:
        """One weight of an operation, in the layout of `shared.operations.ROLES`."""
        part = self._parts[name]
        own = part.roles[role]
        array = self._static[own].detach().numpy() if isinstance(own, Node) else np.asarray(float(own))
        return array.T if part.transposed and role == "kernel" else array

    def trains(self, name: str, role: str) -> bool | None:
        """Whether an optimiser moves a weight of an operation; None for one that is computed from others."""
        own = self._parts[name].roles[role]
        return None if own in self._computed else own in self._trained

    def load(self, weights: Mapping[tuple[str, str], np.ndarray]) -> None:
        """Put arrays in the layouts of `ROLES` in place of the weights of this recording; keys are (operation, role)."""
        for (name, role), array in weights.items():
            part = self._parts[name]
            own = part.roles[role]
            if not isinstance(own, Node):
                raise Error(f"{name}: its {role} is a number in the module's code, which cannot be replaced")
            array = array.T if part.transposed and role == "kernel" else array
            self._static[own] = _tensor(array).reshape(self._static[own].shape)

    def gradients(
        self, inputs: Sequence[np.ndarray], of_outputs: Sequence[np.ndarray]
    ) -> tuple[dict[tuple[str, str], np.ndarray], list[np.ndarray | None]]:
        """(gradients of weights, gradients of the inputs) of the sum of outputs times `of_outputs`.

        Weights' keys are (operation, role), their layouts those of `ROLES`; a weight that several operations read has the whole
        gradient at each.
        """
        roles = {node for part in self._parts.values() for node in part.roles.values() if isinstance(node, Node)}
        leaves = {node: self._static[node].clone() for node in roles if self._static[node].is_floating_point()}
        leaves |= {node: _tensor(array) for node, array in zip(self._inputs, inputs, strict=True)}
        wanted = [value.requires_grad_() for value in leaves.values() if value.is_floating_point()]
        buffers = {node for part in self._parts.values() for role, node in part.roles.items() if role in ("mean", "variance")}
        run = {node: value.clone() if node in self._static else value for node, value in leaves.items()}
        run |= {node: leaves[node].detach().clone() for node in leaves if node in buffers}
        results = {self._of_node.get(node): value for node, value in self._run(inputs, run)}
        outputs = [results[name] for name in self.outputs]
        total = sum((value * _tensor(array)).sum() for value, array in zip(outputs, of_outputs, strict=True))
        found = torch.autograd.grad(total, wanted, allow_unused=True)
        by_value = {id(value): gradient for value, gradient in zip(wanted, found, strict=True)}
        arrays = {node: by_value.get(id(value)) for node, value in leaves.items()}
        of_weights = {}
        for name, part in self._parts.items():
            for role, own in part.roles.items():
                gradient = arrays.get(own) if isinstance(own, Node) else None
                if gradient is not None:
                    of_weights[name, role] = gradient.numpy().T if part.transposed and role == "kernel" else gradient.numpy()
        of_inputs = [arrays[node] for node in self._inputs]
        return of_weights, [None if each is None else each.numpy() for each in of_inputs]

    def statistics(self, inputs: Sequence[np.ndarray]) -> dict[tuple[str, str], np.ndarray]:
        """{(operation, "mean" or "variance"): running statistics after the network has run on `inputs`}."""
        with torch.no_grad():
            after = dict(self._run(inputs))
        return {
            (name, role): after[node].numpy()
            for name, part in self._parts.items()
            for role, node in part.roles.items()
            if role in ("mean", "variance")
        }


def _keys(program: ExportedProgram, count: int) -> list[str]:
    """Where each of `count` outputs is in what the module returns: "logits", "aux.0"; "" for the only one."""
    spec = program.call_spec.out_spec
    if spec is None or spec.num_leaves != count:
        return [str(place) for place in range(count)]
    paths, _ = tree_flatten_with_path(tree_unflatten(list(range(count)), spec))
    return [".".join(str(getattr(step, "key", getattr(step, "idx", step))) for step in path) for path, _ in paths]


def _is_written(node: Node) -> bool:
    """Whether an operator writes on the value of a node: one in place, or a norm on its running statistics."""
    targets = [user.target for user in node.users]
    return any("norm" in str(each) or getattr(getattr(each, "_schema", None), "is_mutable", True) for each in targets)


def _call(node: Node, values: Mapping[Node, Any], numbers: Mapping[Any, Any] | None = None) -> Any:
    """The result of a node's operator on the values of others, with other `numbers` in place of some that it has."""
    arguments = torch.fx.node.map_arg((node.args, node.kwargs), lambda each: values[each])
    args, kwargs = arguments
    if numbers:
        args = tuple(numbers.get(each, each) if isinstance(each, int | float) else each for each in args)
    return node.target(*args, **kwargs)


def _source(node: Node) -> str:
    """File and line of the innermost call that is not in PyTorch's own code, or ""."""
    frames = re.findall(r'File "([^"]+)", line (\d+)', node.meta.get("stack_trace", ""))
    frames = [(path, line) for path, line in frames if not path.startswith("<eval_with_key>")]  # PyTorch's too, made by fx
    own = [f"{path}:{line}" for path, line in frames if FUNCTIONS_OF_PYTORCH not in Path(path).parents]
    return own[-1] if own else ""
