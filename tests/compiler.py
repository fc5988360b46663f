"""How programs are compiled in the tests. Small ones cost nothing to run and everything to compile."""

import os
from importlib.metadata import version

# XLA's newer way to write fused loops for a CPU takes half of the tests' time. From jaxlib 0.11 on there is no other.
_EMITTERS = "xla_cpu_use_fusion_emitters"
_HAS_A_CHOICE = version("jaxlib").startswith("0.10.")

QUICK_COMPILE = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
"""Leaves out what only makes code faster."""
AS_USERS_COMPILE = {_EMITTERS: True} if _HAS_A_CHOICE else {}
"""What to compile with where the compiled program is looked at."""


def compile_quickly() -> None:
    """Has this process, and those that it starts, use the quicker way; to be called before JAX is used."""
    if _HAS_A_CHOICE:
        os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} --{_EMITTERS}=false".strip()


def users_environment() -> dict[str, str]:
    """The environment without that choice."""
    flags = os.environ.get("XLA_FLAGS", "").replace(f"--{_EMITTERS}=false", "").strip()
    return os.environ | {"XLA_FLAGS": flags}
