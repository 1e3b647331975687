"""Block I/O classes: what the file behind blockio_config_file says, as linux.resources.blockIO of an OCI spec.

Source: the configuration format of goresctrl (pkg/blockio), which containerd reads it with. A class is a list of
parameters for sets of devices; later entries of the list win over earlier ones for the same device.
"""

import math
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction

from sandbox_svc.oci.model import Json
from sandbox_svc.yaml_reader import Item, parse

#: A block device by major and minor number.
Numbers = tuple[int, int]
#: Answers which block devices path patterns (with * ? and [a-z]) stand for at present.
Resolve = Callable[[Sequence[str]], Iterable[Numbers]]

_RATES = {
    "ThrottleReadBps": "throttleReadBpsDevice",
    "ThrottleWriteBps": "throttleWriteBpsDevice",
    "ThrottleReadIOPS": "throttleReadIOPSDevice",
    "ThrottleWriteIOPS": "throttleWriteIOPSDevice",
}
_MIN_WEIGHT, _MAX_WEIGHT = 10, 1000
_MAX_RATE = (1 << 63) - 1

#: Kubernetes' quantities (apimachinery, pkg/api/resource).
_QUANTITY = re.compile(r"([+-]?)(\d+\.?\d*|\.\d+)(Ki|Mi|Gi|Ti|Pi|Ei|[numkMGTPE]?|[eE][+-]?\d{1,3})")
_BINARY = {"Ki": 1, "Mi": 2, "Gi": 3, "Ti": 4, "Pi": 5, "Ei": 6}
_DECIMAL = {"n": -9, "u": -6, "m": -3, "": 0, "k": 3, "M": 6, "G": 9, "T": 12, "P": 15, "E": 18}


@dataclass(frozen=True)
class Parameters:
    """One entry of a class."""

    #: Patterns; None for the weight of all devices that no other entry speaks of.
    devices: tuple[str, ...] | None
    weight: int | None
    #: By member of linux.resources.blockIO: bytes or operations a second.
    rates: dict[str, int]


@dataclass(frozen=True)
class BlockioClass:
    """A class; `error` says why it cannot be used."""

    parameters: tuple[Parameters, ...] = ()
    error: str = ""


def read(data: bytes) -> dict[str, BlockioClass]:
    """Return the classes of a file by name; ValueError for a file that is not of the format.

    A class with a value that cannot be is there, with the error in it: it costs no other class.
    """
    fields = parse(data).mapping({"Classes"}, any_case=True)
    found: dict[str, BlockioClass] = {}
    for name, item in fields["Classes"].mapping().items() if "Classes" in fields else ():
        entries = [one.mapping({"Devices", "Weight", *_RATES}, any_case=True) for one in item.sequence()]
        try:
            found[name] = BlockioClass(tuple(_parameters(entry) for entry in entries))
        except ValueError as error:
            found[name] = BlockioClass(error=str(error))
    return found


def block_io(found: BlockioClass, resolve: Resolve) -> Json:
    """Return linux.resources.blockIO of a class, for the devices that its patterns stand for now."""
    limits: Json = {}
    weights: dict[Numbers, int] = {}
    rates: dict[str, dict[Numbers, int]] = {}
    for entry in found.parameters:
        if entry.devices is None:
            if entry.weight is not None:
                limits["weight"] = entry.weight
            continue
        for device in resolve(entry.devices):
            if entry.weight is not None:
                weights[device] = entry.weight
            for member, rate in entry.rates.items():
                rates.setdefault(member, {})[device] = rate
    if weights:
        limits["weightDevice"] = [_device(device) | {"weight": weight} for device, weight in sorted(weights.items())]
    for member, devices in rates.items():
        limits[member] = [_device(device) | {"rate": rate} for device, rate in sorted(devices.items())]
    return limits


def quantity(text: str) -> int:
    """Return a quantity such as 50M, 10k, 1.5Gi or 1e3 as a whole number, rounded up; ValueError for anything else."""
    match = _QUANTITY.fullmatch(text)
    if match is None:
        raise ValueError(f"{text[:80]!r}, expected a quantity such as 50M or 10k")
    sign, digits, suffix = match.groups()
    if suffix in _BINARY:
        factor = Fraction(1024) ** _BINARY[suffix]
    elif suffix in _DECIMAL:
        factor = Fraction(10) ** _DECIMAL[suffix]
    else:
        factor = Fraction(10) ** int(suffix[1:])
    number = math.ceil(Fraction(digits.rstrip(".")) * factor)
    return -number if sign == "-" else number


def _parameters(fields: dict[str, Item]) -> Parameters:
    weight = _number(fields.get("Weight"), _MIN_WEIGHT, _MAX_WEIGHT)
    rates = {member: _number(fields.get(name), 0, _MAX_RATE) for name, member in _RATES.items()}
    said = {member: rate for member, rate in rates.items() if rate is not None}
    devices = tuple(fields["Devices"].texts()) if "Devices" in fields else None
    if devices is None and said:
        raise next(iter(fields.values())).error("throttles nothing, for it has no Devices")
    return Parameters(devices, weight, said)


def _number(item: Item | None, low: int, high: int) -> int | None:
    if item is None or not (text := item.text()):
        return None
    try:
        number = quantity(text)
    except ValueError as error:
        raise item.error(f"is {error}") from error
    if not low <= number <= high:
        raise item.error(f"want {low} to {high}, got {number}")
    return number


def _device(numbers: Numbers) -> Json:
    return {"major": numbers[0], "minor": numbers[1]}
