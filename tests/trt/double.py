# SPDX-License-Identifier: Apache-2.0
"""A strict double of TensorRT's builder: everything real that works without the libraries, and recorders for what does not.

Installed as the module `tensorrt`, it hands out the real enums and value classes of the bindings. Objects that only the
libraries can make are recorders whose methods, arguments and properties are held against the real class of that version.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from typing import Any

import tensorrt as real

from trt import plugins_double, runtime_double
from trt.signatures import Refused, bind, readable, settable, tuple_of

PLANS: dict[bytes, tuple[Network, Config]] = {}  # plan -> what it was built from, for the double of the runtime
HIDDEN: set[str] = set()  # class.member that an older version lacks
HOOKS: dict[str, Callable[..., Any]] = {}  # (class.method) -> replacement, for tests that need a refusal


class Recorder:
    """Stands for one real class: members and arguments are checked against it, calls without a meaning here are refused."""

    stands_for: type = object

    def __init__(self) -> None:
        object.__setattr__(self, "props", {})

    def __getattr__(self, name: str) -> Any:
        cls = type(self).stands_for
        readable(cls, name)
        if f"{cls.__name__}.{name}" in HIDDEN:
            raise AttributeError(f"'{cls.__name__}' object has no attribute '{name}'")
        if isinstance(getattr(cls, name), property):
            if name in self.props:
                return self.props[name]
            raise NotImplementedError(f"the double does not know {cls.__name__}.{name}")
        meaning = HOOKS.get(f"{cls.__name__}.{name}") or getattr(self, f"do_{name}", None) or self.fallback(name)

        def call(*args: Any, **kwargs: Any) -> Any:
            return meaning(**bind(real, cls, name, args, kwargs))

        return call

    def __setattr__(self, name: str, value: Any) -> None:
        settable(real, type(self).stands_for, name, value)
        self.props[name] = value

    def fallback(self, name: str) -> Callable[..., Any]:
        raise NotImplementedError(f"the double gives {type(self).stands_for.__name__}.{name} no meaning")


def recorder(cls: type, base: type = Recorder) -> type:
    """Return a recorder class for a real one."""
    return type(f"{cls.__name__}Double", (base,), {"stands_for": cls})


class Tensor(Recorder):
    stands_for = real.ITensor

    def __init__(self, layer: Layer | None, name: str, shape: Any = None) -> None:
        super().__init__()
        object.__setattr__(self, "layer", layer)
        self.props.update(name=name, shape=shape, dynamic_range=None)

    def do_set_dynamic_range(self, min: float, max: float) -> bool:
        if not max > 0 or min != -max:
            raise Refused(f"dynamic range {min} .. {max} is not symmetric")
        self.props["dynamic_range"] = (min, max)
        return True


class Layer(Recorder):
    """One recorded layer: kind (the method that added it), arguments by name, inputs by index, properties set later."""

    def __init__(self, kind: str, arguments: dict[str, Any], name: str) -> None:
        super().__init__()
        tensors = [v for v in arguments.values() if isinstance(v, Tensor)]
        tensors += [t for v in arguments.values() if isinstance(v, (list, tuple)) for t in v if isinstance(t, Tensor)]
        for key, value in (("kind", kind), ("arguments", arguments), ("inputs", dict(enumerate(tensors))), ("output_types", {})):
            object.__setattr__(self, key, value)
        object.__setattr__(self, "outputs", {})
        self.props["name"] = name

    def do_get_output(self, index: int) -> Tensor:
        if index not in self.outputs:
            self.outputs[index] = Tensor(self, f"{self.props['name']}_{index}")
        return self.outputs[index]  # type: ignore[no-any-return]

    def do_get_input(self, index: int) -> Tensor:
        return self.inputs[index]  # type: ignore[no-any-return]

    def do_set_input(self, index: int, tensor: Tensor) -> None:
        self.inputs[index] = tensor

    def do_set_output_type(self, index: int, dtype: Any) -> None:
        self.output_types[index] = dtype


class Network(Recorder):
    """Records every layer in order."""

    stands_for = real.INetworkDefinition

    def __init__(self, flags: int) -> None:
        super().__init__()
        strong = real.NetworkDefinitionCreationFlag.STRONGLY_TYPED
        weak = "FP16" in real.BuilderFlag.__members__ and not flags & (1 << int(strong))
        for name, value in (("strong", not weak), ("input_tensors", []), ("output_tensors", []), ("layers", [])):
            object.__setattr__(self, name, value)

    def __getattr__(self, name: str) -> Any:
        if name == "num_inputs":
            return len(self.input_tensors)
        return super().__getattr__(name)

    def fallback(self, name: str) -> Callable[..., Any]:
        if not name.startswith("add_"):
            return super().fallback(name)
        returns = getattr(type(self).stands_for, name).__doc__.split("->", 1)[1].strip().splitlines()[0].rsplit(".", 1)[-1]
        cls = recorder(getattr(real, returns), Layer)

        def add(**arguments: Any) -> Layer:
            for key, value in arguments.items():
                if isinstance(value, real.Dims):
                    arguments[key] = tuple_of(value)
            layer = cls(name, arguments, f"(Unnamed Layer* {len(self.layers)})")
            self.layers.append(layer)
            return layer  # type: ignore[no-any-return]

        return add

    def do_add_input(self, name: str, dtype: Any, shape: Any) -> Tensor:
        if name in [tensor.name for tensor in self.input_tensors]:
            raise Refused(f"input {name} twice")
        tensor = Tensor(None, name, tuple_of(shape))
        tensor.props["dtype"] = dtype
        self.input_tensors.append(tensor)
        return tensor

    def do_get_input(self, index: int) -> Tensor:
        return self.input_tensors[index]  # type: ignore[no-any-return]

    def do_mark_output(self, tensor: Tensor) -> None:
        self.output_tensors.append(tensor)


class Profile(Recorder):
    stands_for = real.IOptimizationProfile

    def do_set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self.props[input] = tuple(tuple_of(shape) for shape in (min, opt, max))


class Config(Recorder):
    stands_for = real.IBuilderConfig

    def __init__(self) -> None:
        super().__init__()
        for name, value in (("flags_set", {"TF32"}), ("profiles", []), ("pools", {}), ("cache", None)):
            object.__setattr__(self, name, value)
        object.__setattr__(self, "sources", sum(1 << int(s) for s in real.TacticSource.__members__.values() if "CU" not in s.name))

    def do_set_flag(self, flag: Any) -> None:
        self.flags_set.add(flag.name)

    def do_clear_flag(self, flag: Any) -> None:
        self.flags_set.discard(flag.name)

    def do_set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
        self.pools[pool.name] = pool_size

    def do_get_tactic_sources(self) -> int:
        return self.sources  # type: ignore[no-any-return]

    def do_set_tactic_sources(self, tactic_sources: int) -> bool:
        object.__setattr__(self, "sources", tactic_sources)
        return True

    def do_add_optimization_profile(self, profile: Profile) -> int:
        self.profiles.append(profile)
        return len(self.profiles) - 1

    def do_create_timing_cache(self, serialized_timing_cache: Any) -> TimingCache:
        return TimingCache(bytes(serialized_timing_cache))

    def do_set_timing_cache(self, cache: TimingCache, ignore_mismatch: bool) -> bool:
        if cache.data and not cache.data.startswith(b"cache of this GPU") and not ignore_mismatch:
            return False
        object.__setattr__(self, "cache", cache)
        return True

    def do_get_timing_cache(self) -> TimingCache | None:
        return self.cache  # type: ignore[no-any-return]


class TimingCache(Recorder):
    stands_for = real.ITimingCache

    def __init__(self, data: bytes) -> None:
        super().__init__()
        object.__setattr__(self, "data", data)

    def do_serialize(self) -> bytes:
        return b"cache of this GPU, " + str(len(self.data)).encode()


class Builder(Recorder):
    stands_for = real.Builder

    def __init__(self, logger: Any) -> None:
        super().__init__()
        if not isinstance(logger, real.ILogger):
            raise Refused("Builder needs a logger")

    def do_create_network(self, flags: int = 0) -> Network:
        return Network(flags)

    def do_create_builder_config(self) -> Config:
        return Config()

    def do_create_optimization_profile(self) -> Profile:
        return Profile()

    def do_build_serialized_network(self, network: Network, config: Config) -> bytes | None:
        """Check what TensorRT checks before it builds; return a plan that names its network."""
        if not network.output_tensors:
            raise Refused("a network without outputs")
        check_profiles(network, config)
        monitor = config.props.get("progress_monitor")
        if monitor is not None:
            monitor.phase_start("Building", None, 1)
            monitor.step_complete("Building", 0)
            monitor.phase_finish("Building")
        plan = b"ptrt" + f" plan {len(PLANS)}".encode()
        PLANS[plan] = (network, config)
        return plan


def check_profiles(network: Network, config: Config) -> None:
    """Hold the profiles against the inputs with the rules of IOptimizationProfile.set_shape."""
    dynamic = [t for t in network.input_tensors if -1 in t.shape]
    if dynamic and not config.profiles:
        raise Refused("dynamic inputs without a profile")
    for profile in config.profiles:
        for tensor in network.input_tensors:
            if tensor.name not in profile.props:
                if tensor in dynamic:
                    raise Refused(f"no shape for {tensor.name} in a profile")
                continue
            for size, low, opt, high in zip(tensor.shape, *profile.props[tensor.name], strict=True):
                if not 0 <= low <= opt <= high or (size != -1 and not low == opt == high == size):
                    raise Refused(f"profile of {tensor.name} {profile.props[tensor.name]} against {tensor.shape}")


class Module(types.ModuleType):
    """The module `tensorrt` with doubles in the place of factories that need the libraries."""

    def __init__(self) -> None:
        super().__init__("tensorrt")
        self.Builder = Builder
        self.Runtime = runtime_double.make(sys.modules[__name__])
        self.registry = plugins_double.Registry(real)
        self.get_plugin_registry = lambda: self.registry
        self.plugins_loaded = False
        self.__version__ = real.__version__

    def init_libnvinfer_plugins(self, logger: Any, namespace: str) -> bool:
        assert isinstance(logger, real.ILogger) and namespace == ""
        self.plugins_loaded = self.registry.loaded = True
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(real, name)


MODULE = Module()


def install() -> Module:
    """Put the double in the place of `tensorrt` and return it."""
    sys.modules["tensorrt"] = MODULE
    return MODULE
