"""Every private or unstable name of ExecuTorch that this backend uses, and the check that they are the ones it knows.

ExecuTorch is imported inside the functions, so that listing backends costs nothing and works without it.
"""

from __future__ import annotations

import contextlib
import copy
import importlib.metadata
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, fx

from drawplate.backends.xnnpack.ops import Regions, Shapes
from drawplate.errors import BackendError, RuntimeMissing

KNOWN = "1.4"
"""The series of ExecuTorch that this file was written against."""

DELEGATE = "XnnpackBackend"
INVALID = 0xFFFFFFFF
"""XNN_INVALID_VALUE_ID: no value, or no external number."""
NAMED = 0xFFFFFFFFFFFFFFFF
"""The offset of constant data that is found by its name."""
ALIGNMENT = 16
"""Bytes that constants are aligned to."""
KERNELS = ("extension/llm/custom_ops/libcustom_ops_aot_lib.*", "kernels/quantized/libquantized_ops_aot_lib.*")
"""Libraries that register kernels with the runtime when they are loaded."""
_loaded: list[str] = []  # files that this process has had in the runtime, which has one pool of threads


@dataclass(frozen=True)
class Blob:
    """What XNNPACK is handed for one region. graph: XNNPACK's flatbuffer; constants: by key, shared between regions."""

    graph: bytes
    constants: Mapping[str, bytes]


@dataclass(frozen=True)
class Layout:
    """Where everything is in a .pte. Offsets are from the start of the file.

    program: bytes of the header and the flatbuffer. segments: (offset, size) of each. named: key -> segment.
    constant: the segment of plain constants and the offsets in it. delegates: the segment of each delegate's graph.
    operators: `aten::add.out`, as the program calls them.
    """

    size: int
    program: int
    base: int
    segments: tuple[tuple[int, int], ...]
    named: Mapping[str, int]
    constant: tuple[int, tuple[int, ...]]
    delegates: tuple[int, ...]
    operators: tuple[str, ...] = ()


@lru_cache(maxsize=1)
def require() -> str:
    """ExecuTorch's version. Raises RuntimeMissing if it is not installed or not of the known series."""
    try:
        version = importlib.metadata.version("executorch")
    except importlib.metadata.PackageNotFoundError:
        raise RuntimeMissing(
            "ExecuTorch is not installed",
            why="the xnnpack backend writes and runs its files",
            fix="pip install executorch",
        ) from None
    check_version(version)
    return version


def check_version(version: str) -> None:
    """Raises RuntimeMissing if the version is not of the known series."""
    if version.split(".")[:2] != KNOWN.split("."):
        raise RuntimeMissing(
            f"ExecuTorch {version} is not known to the xnnpack backend",
            why=f"it uses names that ExecuTorch changes without notice, as they are in {KNOWN}",
            fix=f"pip install 'executorch=={KNOWN}.*'",
        )


def schema() -> ModuleType:
    """The classes that XNNPACK's flatbuffer is written from."""
    require()
    with quiet():
        from executorch.backends.xnnpack.serialization import xnnpack_graph_schema

    return xnnpack_graph_schema


def serialise(graph: Any) -> bytes:
    """An XNNGraph -> the bytes that the delegate reads."""
    from executorch.backends.xnnpack.serialization.xnnpack_graph_serialize import serialize_xnnpack_binary

    return serialize_xnnpack_binary(graph, bytearray())


def register_operators() -> None:
    """Make torch.ops.llama and torch.ops.quantized_decomposed known to torch and their kernels to the runtime."""
    require()
    with quiet():
        import executorch.extension.llm.custom_ops.custom_ops
        import executorch.kernels.quantized  # noqa: F401
        from torch.ao.quantization.fx._decomposed import quantized_decomposed_lib  # noqa: F401


def lower(
    module: fx.GraphModule,
    inputs: Sequence[Tensor],
    dynamic: Sequence[Mapping[int, Any]],
    blobs: Mapping[str, Blob],
    shapes: Mapping[str, Shapes],
    constants: Mapping[str, Any],
    path: Path,
) -> None:
    """Write the .pte of a module in which `drawplate_xnnpack.region(inputs, key)` stands for blobs[key].

    dynamic: for each input, axis -> torch.export.Dim. shapes: how each region's results follow from its inputs.
    constants: methods that return a constant, by name.
    """
    with torch.no_grad(), quiet(), Regions(dict(shapes)):
        from executorch.exir import EdgeCompileConfig, ExecutorchBackendConfig, to_edge
        from executorch.exir.passes import MemoryPlanningPass
        from executorch.exir.passes.sym_shape_eval_pass import ConstraintBasedSymShapeEvalPass
        from executorch.exir.program._program import collect_named_data_store_from_exported_program

        exported = torch.export.export(module, tuple(inputs), dynamic_shapes=tuple(dynamic), strict=False)
        edge = to_edge(
            exported,
            compile_config=EdgeCompileConfig(_check_ir_validity=False, _skip_dim_order=True),
            constant_methods=dict(constants),
        )
        program = edge.exported_program()
        _delegate(program.graph_module, blobs, shapes)
        # The manager looks for named data when it is made, which was before there were delegates.
        collect_named_data_store_from_exported_program(program, edge._named_data_store)  # noqa: SLF001
        lowered = edge.to_executorch(
            ExecutorchBackendConfig(
                extract_delegate_segments=True,
                do_quant_fusion_and_const_prop=False,
                memory_planning_pass=MemoryPlanningPass(alloc_graph_input=False),
                sym_shape_eval_pass=ConstraintBasedSymShapeEvalPass(),
            )
        )
    with path.open("wb") as file:
        lowered.write_to_file(file)


def _delegate(module: fx.GraphModule, blobs: Mapping[str, Blob], shapes: Mapping[str, Shapes]) -> None:
    """Put a call of the delegate in the place of each region."""
    from executorch.exir._serialize._named_data_store import NamedDataStore
    from executorch.exir.delegate import executorch_call_delegate
    from executorch.exir.lowered_backend_module import LoweredBackendModule

    graph = module.graph
    regions = [
        n
        for n in graph.nodes
        if n.op == "call_function" and "drawplate_xnnpack.region" in str(n.target).replace("::", ".")
    ]
    for i, node in enumerate(regions):
        inputs, key = node.args
        store = NamedDataStore()
        for name, data in blobs[key].constants.items():
            store.add_named_data(name, data, ALIGNMENT)
        lowered = LoweredBackendModule(
            _Stub(shapes[key]), DELEGATE, blobs[key].graph, [], store.get_named_data_store_output()
        )
        lowered.meta = {"debug_handle_map": {}}
        name = f"lowered_module_{i}"
        module.add_module(name, lowered)
        with graph.inserting_before(node):
            handle = graph.get_attr(name)
            call = graph.call_function(executorch_call_delegate, (handle, *inputs))
        call.meta = copy.copy(node.meta)
        call.meta["val"] = tuple(node.meta["val"])
        node.replace_all_uses_with(call)
        graph.erase_node(node)
    graph.lint()
    module.recompile()


class _Stub:
    """What a LoweredBackendModule asks of the program it was made from: shapes of the results, and an empty graph."""

    def __init__(self, shapes: Shapes) -> None:
        graph = fx.Graph()
        graph.output(())
        self.graph_module = fx.GraphModule(torch.nn.Module(), graph)
        self.graph = self.graph_module.graph
        self._module = _Shapes(shapes)

    def module(self, *_: Any, **__: Any) -> torch.nn.Module:
        """A module that gives results of the right shapes."""
        return self._module

    def __deepcopy__(self, memo: Any) -> _Stub:
        return self


class _Shapes(torch.nn.Module):
    def __init__(self, shapes: Shapes) -> None:
        super().__init__()
        self._shapes = shapes

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        """Empty tensors of the right shapes."""
        return tuple(self._shapes(inputs))


def read_layout(path: Path) -> Layout:
    """Where things are in a .pte. Raises BackendError if it is not as this version of ExecuTorch writes it."""
    require()
    from executorch.exir._serialize._flatbuffer_program import _flatbuffer_to_program
    from executorch.exir._serialize._program import _get_extended_header
    from executorch.exir.schema import DataLocation

    with path.open("rb") as file:
        header = _get_extended_header(file.read(64))
        size = path.stat().st_size
        length = header.program_size if header else size  # a program without any data has no header
        file.seek(0)
        data = file.read(length)
    if data[4:6] != b"ET":
        raise BackendError("the file is no .pte", where=str(path), why="it does not begin as ExecuTorch's programs do")
    program = _flatbuffer_to_program(data)
    base = header.segment_base_offset if header else size
    inline = [
        d for plan in program.execution_plan for d in plan.delegates if d.processed.location != DataLocation.SEGMENT
    ]
    if inline or program.mutable_data_segments:
        raise BackendError("the file's data is not all in segments", where=str(path), why="this layout is not known")
    return Layout(
        size,
        length,
        base,
        tuple((base + s.offset, s.size) for s in program.segments),
        {entry.key: entry.segment_index for entry in program.named_data or ()},
        (program.constant_segment.segment_index, tuple(program.constant_segment.offsets)),
        tuple(d.processed.index for plan in program.execution_plan for d in plan.delegates),
        tuple(f"{o.name}.{o.overload}".rstrip(".") for plan in program.execution_plan for o in plan.operators),
    )


def without_kernel(layout: Layout) -> list[str]:
    """Operators of a .pte for which this runtime, with ExecuTorch's own kernel libraries, has no kernel."""
    known = set(runtime()._get_operator_names())  # noqa: SLF001
    return [name for name in dict.fromkeys(layout.operators) if name not in known]


@lru_cache(maxsize=1)
def runtime() -> Any:
    """ExecuTorch's runtime with its libraries of custom kernels.

    The compiled module itself: the Python around it imports all of ExecuTorch's compiler, 3 seconds and 135 MB of it.
    """
    require()
    with quiet():
        from executorch.extension.pybindings import _portable_lib

        # Whoever asks first has the pool of threads made, and cpuinfo prints five lines meanwhile. A program without
        # delegates would be the first in the middle of its answer.
        _portable_lib._threadpool_get_thread_count()  # noqa: SLF001

    root = Path(_portable_lib.__file__).parents[2]
    for pattern in KERNELS:
        libraries = sorted(root.glob(pattern))
        if len(libraries) != 1:
            raise RuntimeMissing(
                f"ExecuTorch's kernel library {pattern} is not there",
                where=str(root),
                why=f"{len(libraries)} files are called that",
                fix="install ExecuTorch's wheel again",
            )
        torch.ops.load_library(libraries[0])
    return _portable_lib


def flatbuffer_tables() -> Any:
    """The generic reader of flatbuffers' tables, for changing numbers in place."""
    from flatbuffers import number_types, table

    return table.Table, number_types


@dataclass(frozen=True)
class Loaded:
    """A .pte in the runtime. The program is kept, since the method reads its memory."""

    program: Any
    method: Any
    constants: Mapping[str, Any]

    def __call__(self, *inputs: Tensor) -> list[Tensor]:
        """Run it once. The results share memory with the runtime: copy what is to be kept."""
        return list(self.method(inputs))


def load(path: Path) -> Loaded:
    """Open a .pte in ExecuTorch's runtime. Raises RuntimeMissing or BackendError."""
    if not path.is_file():
        raise BackendError("there is no .pte", where=str(path), fix="give the folder that compile() wrote")
    library = runtime()
    with quiet():
        try:
            program = library._load_program(str(path), program_verification=library.Verification.Minimal)  # noqa: SLF001
            method = program.load_method("forward")
        except (RuntimeError, MemoryError) as error:
            raise BackendError(
                "ExecuTorch does not load the file", where=str(path), why=str(error).strip(), fix="compile it again"
            ) from error
        constants = {}
        names = {program.get_method_name(i) for i in range(program.num_methods())}
        for name in sorted(names - {"forward"}):
            values = program.load_method(name)([])
            constants[name] = values[0] if len(values) == 1 else tuple(values)
    _loaded.append(path.name)
    return Loaded(program, method, constants)


def set_threads(count: int) -> None:
    """Threads of the runtime, for the whole process. Raises BackendError once a program is loaded: its delegates keep
    the old pool, and the next call would crash."""
    library = runtime()
    with quiet():
        now = library._threadpool_get_thread_count()  # noqa: SLF001
    if now == count:
        return
    if _loaded:
        raise BackendError(
            f"the runtime keeps its {now} threads",
            where="opening an artifact",
            why=f"{_loaded[0]} is loaded in this process and works with them",
            fix=f"set {count} threads before anything is opened, or in a process of its own",
        )
    with quiet():
        library._unsafe_reset_threadpool(count)  # noqa: SLF001


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep what native code writes to file descriptor 2 unless something is raised, and Python's warnings about
    ExecuTorch's own code. Its kernels complain on every call while shapes are traced, hundreds of lines of it."""
    sys.stderr.flush()
    saved = os.dup(2)
    with tempfile.TemporaryFile() as sink, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        os.dup2(sink.fileno(), 2)
        try:
            yield
        except BaseException:
            sys.stderr.flush()
            sink.seek(0)
            os.write(saved, sink.read()[-4000:])
            raise
        finally:
            sys.stderr.flush()
            os.dup2(saved, 2)
            os.close(saved)
