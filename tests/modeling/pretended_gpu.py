"""A GPU that is none: tensors that say they are on `cuda` and compute on the CPU.

So the paths that models take on a GPU run where there is none, with numbers to compare, and what only a GPU minds is
seen: tensors of two devices in one operation, and questions to the device, for which the host waits.

torch must find the library that `built` makes when it is imported: `load` comes first, in a process of its own.
"""

from __future__ import annotations

import ctypes
import subprocess
import sysconfig
from pathlib import Path
from typing import Any

# A build of torch for CPUs has no device guard and no hooks of CUDA, and autograd asks for both.
SOURCE = """
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
using namespace c10;
using at::CUDAHooksRegistry;
using at::RegistererCUDAHooksRegistry;
struct CUDAHooks final : at::CUDAHooksInterface {
  explicit CUDAHooks(at::CUDAHooksArgs) {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return false; }
};
REGISTER_CUDA_HOOKS(CUDAHooks);
struct Guard final : impl::NoOpDeviceGuardImpl<DeviceType::CUDA> {
  Device getDevice() const override { return Device(DeviceType::CUDA, 0); }
  Device exchangeDevice(Device) const override { return getDevice(); }
  Stream getStream(Device) const noexcept override { return Stream(Stream::DEFAULT, Device(DeviceType::CUDA, 0)); }
  Stream exchangeStream(Stream) const noexcept override { return Stream(Stream::DEFAULT, Device(DeviceType::CUDA, 0)); }
  void record(void**, const Stream&, DeviceIndex, EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
};
static impl::DeviceGuardImplRegistrar registered(DeviceType::CUDA, new Guard());
"""


def built(folder: Path) -> Path:
    """The library, compiled in `folder` (some seconds). Raises CalledProcessError, FileNotFoundError without g++."""
    torch = Path(sysconfig.get_paths()["purelib"]) / "torch"
    source, library = folder / "pretended.cpp", folder / "pretended.so"
    source.write_text(SOURCE, encoding="utf-8")
    words = ["g++", "-std=c++20", "-O0", "-shared", "-fPIC", f"-I{torch / 'include'}", str(source), "-o", str(library)]
    links = [f"-L{torch / 'lib'}", f"-Wl,-rpath,{torch / 'lib'}", "-lc10", "-ltorch_cpu"]
    subprocess.run([*words, *links], check=True, capture_output=True)
    return library


def load(library: str) -> Any:
    """The device, as a context in which tensors can be on `cuda`; before anything has imported torch."""
    ctypes.CDLL(library, mode=ctypes.RTLD_GLOBAL)
    import torch
    import torch.cuda.amp.common
    from torch.utils._python_dispatch import TorchDispatchMode
    from torch.utils._pytree import tree_flatten, tree_map

    aten = torch.ops.aten
    products = {aten.mm.default, aten.addmm.default, aten.bmm.default}
    asks = {aten._local_scalar_dense.default, aten.nonzero.default, aten.equal.default, aten.masked_select.default}
    indexing = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default}
    across = {aten.copy_.default, aten._to_copy.default}

    torch.cuda._lazy_init = lambda: None
    torch.cuda.manual_seed = lambda seed: None
    torch.cuda.is_bf16_supported = lambda *_: True
    torch.cuda.amp.common.amp_definitely_not_available = lambda: False
    torch.Tensor.pin_memory = lambda self: self
    torch._C._set_only_lift_cpu_tensors(True)  # `torch.tensor(list, device="cuda")` by way of the host
    torch.__future__.set_overwrite_module_params_on_conversion(True)

    def is_gpu(device: Any) -> bool:
        return device is not None and torch.device(device).type == "cuda"

    class OnGpu(torch.Tensor):
        inner: torch.Tensor

        @staticmethod
        def __new__(cls, inner: torch.Tensor) -> OnGpu:
            made = torch.Tensor._make_wrapper_subclass(
                cls,
                inner.shape,
                strides=inner.stride(),
                storage_offset=inner.storage_offset(),
                dtype=inner.dtype,
                device=torch.device("cuda", 0),
            )
            made.inner = inner
            return made

        def __init__(self, inner: torch.Tensor) -> None: ...

        def __repr__(self) -> str:
            return f"OnGpu({self.inner})"

        def tolist(self) -> Any:
            device.asked.append("tolist")
            return self.inner.tolist()

        __torch_function__ = torch._C._disabled_torch_function_impl

        @classmethod
        def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return device.run(func, args, kwargs or {})

    class Gpu(TorchDispatchMode):
        """Attributes:
        asked: questions to the device: names of operations that the host waits for.
        late: those of them after the first matrix product.
        """

        asked: list[str]
        late: list[str]

        def __init__(self) -> None:
            super().__init__()
            self.restart()

        def restart(self) -> None:
            """Forget what was seen."""
            self.asked, self.late, self.working = [], [], False

        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            return self.run(func, args, kwargs or {})

        def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
            tensors = [a for a in tree_flatten((args, kwargs))[0] if isinstance(a, torch.Tensor)]
            own = [a for a in tensors if isinstance(a, OnGpu)]
            to = kwargs.get("device")
            here = is_gpu(to) or (bool(own) and not (func is aten._to_copy.default and to is not None))
            if own:
                self._look(func, args, tensors, to)
            kwargs = {name: "cpu" if name == "device" and is_gpu(x) else x for name, x in kwargs.items()}
            inside = {id(a.inner): a for a in own}
            plain = tree_map(lambda a: a.inner if isinstance(a, OnGpu) else a, (args, kwargs))
            found = self._computed(func, *plain)

            def back(x: Any) -> Any:
                if not isinstance(x, torch.Tensor) or isinstance(x, OnGpu):
                    return x
                if func._schema.is_mutable and id(x) in inside:
                    return inside[id(x)]
                return OnGpu(x) if here else x

            return tree_map(back, found)

        def _look(self, func: Any, args: Any, tensors: list[torch.Tensor], to: Any) -> None:
            strangers = [a for a in tensors if not isinstance(a, OnGpu) and a.dim()]
            if strangers and func not in across:
                raise RuntimeError(f"{func}: tensors on two devices")
            asks_now = func in asks or (to is not None and not is_gpu(to))
            if func in indexing:
                asks_now |= any(i is not None and i.dtype in (torch.bool, torch.uint8) for i in args[1])
            self.working |= func in products
            if asks_now:
                self.asked.append(str(func))
                self.late += [str(func)] * self.working

        def _computed(self, func: Any, args: Any, kwargs: Any) -> Any:
            if func is aten._fused_sdp_choice.default:
                return 0  # the plain formula: a GPU's kernels are not here
            if func is aten.cumsum.default and args[0].is_floating_point():
                strict = torch.are_deterministic_algorithms_enabled()
                if strict and not torch.is_deterministic_algorithms_warn_only_enabled():
                    raise RuntimeError("cumsum_cuda_kernel does not have a deterministic implementation")
            return func(*args, **kwargs)

    def lstm(x: Any, states: Any, weights: Any, *settings: Any) -> Any:
        """Of cuDNN, with what it refuses; one layer with projection, batch first."""
        needs = torch.is_grad_enabled() and any(t.requires_grad for t in (x, *weights))
        if needs and not settings[3]:
            raise RuntimeError("cudnn RNN backward can only be called in training mode")
        (h,), (c,), (w, u, b, _, projection) = *states, weights
        found = []
        for step in x.unbind(1):
            i, f, g, o = (step @ w.t() + h @ u.t() + b).chunk(4, 1)
            c = f.sigmoid() * c + i.sigmoid() * g.tanh()
            h = (o.sigmoid() * c.tanh()) @ projection.t()
            found.append(h)
        return torch.stack(found, 1), h, c

    of_torch = torch.lstm
    torch.lstm = lambda x, *rest: lstm(x, *rest) if x.is_cuda else of_torch(x, *rest)
    device = Gpu()
    return device
