"""GPUs to compile for, where there are none: as ``max warm-cache`` does."""

from max import driver


def use_virtual_gpus(target: str, count: int) -> None:
    """Has MAX see GPUs that are not there. A process remembers the first target.

    Args:
        target: Their API and architecture, such as ``"cuda:sm_90a"``.
        count: How many.
    """
    api, architecture = target.split(":")
    driver.set_virtual_device_api(api)
    driver.set_virtual_device_target_arch(architecture)
    driver.set_virtual_device_count(count)


def use_real_devices() -> None:
    """Has MAX see what is there again."""
    driver.set_virtual_device_count(0)
    driver.set_virtual_device_target_arch("")
    driver.set_virtual_device_api("")
