"""What the clients made from proto/ share: the generated modules, and how a check is reported."""

import pathlib
import sys

from grpc_tools import protoc

PROTO = pathlib.Path(__file__).resolve().parents[2] / "proto"
FILES = ["temperd/v1/inference.proto", "temperd/v1/control.proto", "temperd/v1/telemetry.proto"]


def check(what, holds, found=None):
    if not holds:
        print(f"FAILED  {what}" + ("" if found is None else f": {found!r}"), flush=True)
        sys.exit(1)
    print(f"ok      {what}", flush=True)


def generate(folder):
    """Writes temperd.v1.{inference,control,telemetry}_pb2 and _pb2_grpc into the folder, where they can be imported."""
    arguments = ["protoc", f"-I{PROTO}", f"--python_out={folder}", f"--grpc_python_out={folder}", *FILES]
    check("stubs are generated from proto/", protoc.main(arguments) == 0)
    sys.path.insert(0, str(folder))
