"""Compile shared/proto into shared/bulkhead/proto, so that the stubs always fit the installed runtime."""

import sys
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class ProtoBuildHook(BuildHookInterface[Any]):
    """Runs protoc before every build, editable installs included."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        """Generate messages, type stubs and gRPC stubs; a proto that does not compile fails the build."""
        from grpc_tools import _proto, protoc

        root = Path(self.root)
        source, target = root / "shared" / "proto", root / "shared"
        out = target / "bulkhead" / "proto"
        out.mkdir(exist_ok=True)
        protos = sorted(source.rglob("*.proto"))
        # The import path carries the package's name, so that generated imports are absolute.
        names = [f"bulkhead/proto/{p.relative_to(source).as_posix()}" for p in protos]
        well_known = Path(_proto.__file__).parent if _proto.__file__ else Path(next(iter(_proto.__path__)))
        command = [
            "protoc",
            f"-Ibulkhead/proto={source}",
            f"-I{well_known}",
            f"--python_out={target}",
            f"--pyi_out={target}",
            f"--grpc_python_out={target}",
            *names,
        ]
        if protoc.main(command) != 0:
            sys.exit("bulkhead: the protos under shared/proto do not compile")
        for directory in {p.relative_to(source).parent for p in protos} | {Path()}:
            for parent in [directory, *directory.parents]:
                (out / parent / "__init__.py").touch()
        # A service of no methods still gets a *_pb2_grpc.py; a proto without services needs none.
        for proto in protos:
            if "\nservice " not in proto.read_text():
                (out / proto.relative_to(source)).with_name(f"{proto.stem}_pb2_grpc.py").unlink(missing_ok=True)
