"""Published figures of accelerators, and what XLA needs to know of a GPU to compile for it.

Sources:
    TPU: Google Cloud's page of each version, "TPU system architecture" (links: ICI per chip); XLA
        keeps 0.25 of a v5e's 16 GiB to itself.
    A100, H100, H200: NVIDIA's data sheets of the SXM modules (dense bfloat16, HBM, NVLink), its
        CUDA C++ programming guide on compute capabilities 8.0 and 9.0 (limits, shared memory), the
        guides of DGX A100 and DGX H100/H200 (a 200 or 400 Gbit/s adapter per GPU), and memory as
        the driver reports it, of which JAX reserves 75% ("GPU memory allocation").
"""

import dataclasses
import math


@dataclasses.dataclass(frozen=True)
class Chip:
    """Figures of one chip.

    Attributes:
        hbm: size of HBM in bytes.
        flops: dense bfloat16 peak in FLOP/s.
        hbm_bandwidth: bandwidth of HBM in bytes per second.
        link_bandwidth: bandwidth to all other chips together in bytes per second, one direction.
        network_bandwidth: bandwidth to other hosts in bytes per second; infinite where the links
            span hosts.
        usable: fraction of HBM that programs can use by default.
    """

    hbm: float
    flops: float
    hbm_bandwidth: float
    link_bandwidth: float
    network_bandwidth: float = math.inf
    usable: float = 15.75 / 16

    def on_hosts(self, hosts: int, chips_per_host: int) -> "Chip":
        """Returns the chip as one of several hosts, whose network may be slower than its links.

        All adapters of a host together carry at least what each of its chips exchanges.
        """
        if hosts == 1:
            return self
        between_hosts = chips_per_host * self.network_bandwidth
        return dataclasses.replace(self, link_bandwidth=min(self.link_bandwidth, between_hosts))


@dataclasses.dataclass(frozen=True)
class Gpu:
    """A GPU to compile for.

    Attributes:
        kind: its `jax.Device.device_kind`.
        major: major version of its compute capability; the minor version is 0.
        shared_memory: shared memory of a multiprocessor in bytes.
        fpus: float32 units of a multiprocessor.
        multiprocessors: number of multiprocessors.
        l2: size of the L2 cache in bytes.
        clock: boost clock in GHz.
    """

    kind: str
    major: int
    shared_memory: int
    fpus: int
    multiprocessors: int
    l2: int
    clock: float

    def target_config(self) -> str:
        """Returns XLA's description of the GPU, a `GpuTargetConfigProto` as text."""
        chip = CHIPS[self.kind]
        # Instructions of the architecture itself, such as Hopper's matrix products (sm_90a).
        extension = "ACCELERATED_FEATURES" if self.major >= 9 else "NONE"
        return f"""
            gpu_device_info {{
              threads_per_block_limit: 1024
              threads_per_warp: 32
              shared_memory_per_block: {48 * 2**10}
              shared_memory_per_core: {self.shared_memory}
              shared_memory_per_block_optin: {self.shared_memory - 2**10}
              threads_per_core_limit: 2048
              core_count: {self.multiprocessors}
              fpus_per_core: {self.fpus}
              block_dim_limit_x: {2**31 - 1}
              block_dim_limit_y: 65535
              block_dim_limit_z: 65535
              registers_per_core_limit: 65536
              registers_per_block_limit: 65536
              memory_bandwidth: {int(chip.hbm_bandwidth)}
              device_memory_size: {int(chip.hbm)}
              l2_cache_size: {self.l2}
              clock_rate_ghz: {self.clock}
              cuda_compute_capability {{ major: {self.major} feature_extension: {extension} }}
            }}
            platform_name: "CUDA"
            dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
            device_description_str: "{self.kind}"
        """


# Name in --topology -> GPU.
GPUS = {
    "a100": Gpu("NVIDIA A100-SXM4-80GB", 8, 164 * 2**10, 64, 108, 40 * 2**20, 1.41),
    "h100": Gpu("NVIDIA H100 80GB HBM3", 9, 228 * 2**10, 128, 132, 50 * 2**20, 1.98),
    "h200": Gpu("NVIDIA H200 141GB HBM3e", 9, 228 * 2**10, 128, 132, 50 * 2**20, 1.98),
}

# `jax.Device.device_kind` -> figures.
CHIPS = {
    "TPU v4": Chip(32 * 2**30, 275e12, 1228e9, 300e9),
    "TPU v5 lite": Chip(16 * 2**30, 197e12, 819e9, 200e9),
    "TPU v5": Chip(95 * 2**30, 459e12, 2765e9, 600e9),
    "TPU v6 lite": Chip(32 * 2**30, 918e12, 1640e9, 448e9),
    GPUS["a100"].kind: Chip(85_100_068_864, 312e12, 2039e9, 300e9, 25e9, 0.75),
    GPUS["h100"].kind: Chip(84_942_979_072, 989e12, 3352e9, 450e9, 50e9, 0.75),
    GPUS["h200"].kind: Chip(151_397_597_184, 989e12, 4800e9, 450e9, 50e9, 0.75),
}
