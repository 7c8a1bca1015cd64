"""Startup kits and jobs of a federation, made by NVIDIA FLARE's own provisioning.

A kit is a folder with a site's certificate and key, the spec of the federation, and the list of
classes that the site runs: one.
"""

import io
import json
import logging
import pathlib
import shutil
import zipfile
from collections.abc import Mapping
from typing import Any

from fedjax_lora.core import atomic_io
from fedjax_lora.core.errors import InputError
from fedjax_lora.deploy.spec import FederationSpec

PROJECT = "federation"
ADMIN = "admin@fedjax-lora.org"
ORGANISATION = "fedjax"
KITS = "kits"
PORT = 8002

TASK = "task.txt"
"""File of the task with the server's own test examples, in the folder of the federation."""

EXECUTOR = "fedjax_lora.deploy.nvflare.SiteExecutor"
CONTROLLER = "fedjax_lora.deploy.nvflare.FederationController"

BUILDERS = (
    ("workspace.WorkspaceBuilder", {"template_file": ["master_template.yml"]}),
    ("static_file.StaticFileBuilder", {"config_folder": "config"}),
    ("cert.CertBuilder", {}),
    ("signature.SignatureBuilder", {}),
)


def check_engine() -> None:
    """Refuse to go on without NVIDIA FLARE.

    Raises:
      InputError: it is not installed.
    """
    from fedjax_lora.core.optional_packages import is_installed

    if not is_installed("nvflare"):
        raise InputError(
            "A federation of real machines needs NVIDIA FLARE; install fedjax-lora[deploy]."
        )


def provision(
    folder: pathlib.Path, spec: FederationSpec, *, server: str, port: int = PORT
) -> dict[str, pathlib.Path]:
    """Make the kits of server, sites and administrator.

    Args:
      folder: of the federation.
      spec: the federation.
      server: host name of the server, as sites reach it.
      port: its port.

    Returns:
      The kits' folders by name; that of the server is ``server``, the administrator's ``admin``.

    Raises:
      InputError: the kits cannot be made.
    """
    check_engine()
    from nvflare.lighter.prov_utils import prepare_builders  # pyright: ignore[reportMissingImports]
    from nvflare.lighter.provision import prepare_project  # pyright: ignore[reportMissingImports]
    from nvflare.lighter.provisioner import Provisioner  # pyright: ignore[reportMissingImports]

    people = [
        {"name": server, "type": "server", "fed_learn_port": port, "admin_port": port},
        *({"name": site, "type": "client"} for site in spec.sites),
        {"name": ADMIN, "type": "admin", "role": "project_admin"},
    ]
    project = {
        "api_version": 3,
        "name": PROJECT,
        "description": "fedjax_lora",
        "participants": [{**one, "org": ORGANISATION} for one in people],
        "builders": [
            {"path": f"nvflare.lighter.impl.{name}", "args": dict(args)} for name, args in BUILDERS
        ],
    }
    quiet = logging.getLogger("fedjax_lora.deploy.provision")
    root = folder / KITS
    made = Provisioner(str(root), prepare_builders(project)).provision(
        prepare_project(project), logger=quiet
    )
    place = made.get("current_prod_dir")
    if not place or made.get("build_error"):
        raise InputError(f"The kits could not be made in {root}; look at what is said above.")
    where = {"server": server, "admin": ADMIN} | {site: site for site in spec.sites}
    kits = {name: pathlib.Path(place) / part for name, part in where.items()}
    _restrict(kits["server"], CONTROLLER)
    for site in spec.sites:
        _restrict(kits[site], EXECUTOR)
        spec.write(kits[site] / "local")
    return kits


def create(
    folder: pathlib.Path, spec: FederationSpec, *, task: str, server: str, port: int
) -> dict[str, pathlib.Path]:
    """Make the folder of a federation: its spec, all kits, and a zip file for each site.

    Args:
      folder: to be made.
      spec: the federation.
      task: its task with the server's own file, which stays in this folder.
      server: host name of the server, as sites reach it.
      port: its port.

    Returns:
      The zip files by site.
    """
    folder.mkdir(parents=True)
    spec.write(folder)
    atomic_io.write(folder / TASK, task + "\n")
    kits = provision(folder, spec, server=server, port=port)
    made = {site: folder / f"{site}.zip" for site in spec.sites}
    for site, path in made.items():
        path.write_bytes(zipped(kits[site]))
        path.chmod(0o600)  # it holds the site's private key
    return made


def server_task(folder: pathlib.Path) -> str:
    """The task of a federation with the server's own file.

    Raises:
      InputError: it is not there.
    """
    try:
        return (folder / TASK).read_text(encoding="utf-8").strip()
    except OSError as error:
        raise InputError(
            f"{folder / TASK} cannot be read ({error}); make the federation anew."
        ) from error


def site_of(kit: pathlib.Path) -> str:
    """The name of the site that a kit is for.

    Raises:
      InputError: the kit is damaged.
    """
    try:
        values = json.loads((kit / "startup" / "fed_client.json").read_text(encoding="utf-8"))
        return str(values["client"]["fqsn"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"Kit {kit} is damaged; ask the server's owner for a new one.") from error


def find(folder: pathlib.Path, spec: FederationSpec) -> dict[str, pathlib.Path]:
    """The kits that `provision` has made.

    Raises:
      InputError: there are none.
    """
    places = sorted((folder / KITS / PROJECT).glob("prod_*"))
    if not places:
        raise InputError(f"{folder} has no kits; make the federation with fedjax-lora deploy new.")
    names = {path.name: path for path in places[-1].iterdir()}
    servers = set(names) - set(spec.sites) - {ADMIN}
    kits = {"server": names[servers.pop()], "admin": names[ADMIN]}
    return kits | {site: names[site] for site in spec.sites}


def _restrict(kit: pathlib.Path, only: str) -> None:
    """Let a machine run one class of jobs, and send no logs."""
    local = kit / "local"
    values = json.loads((local / "resources.json.default").read_text(encoding="utf-8"))
    values["class_list_enforcement_mode"] = "enforce"
    values["class_allow_list"] = [only]
    # Logs may quote a site's data: they stay where they are written.
    values["allow_log_streaming"] = False
    values["components"] = [
        one for one in values["components"] if "log" not in one["path"].rpartition(".")[0]
    ]
    (local / "resources.json").write_text(json.dumps(values, indent=2), encoding="utf-8")


def keep_jobs(kit: pathlib.Path) -> None:
    """Let the server keep jobs in its kit; the engine's folder is one for all of a machine.

    A kit may have been moved since it was made, so this is done when the server starts.
    """
    path = kit / "local" / "resources.json"
    values = json.loads(path.read_text(encoding="utf-8"))
    values["snapshot_persistor"]["args"]["storage"]["args"]["root_dir"] = str(kit / "snapshots")
    jobs = next(one for one in values["components"] if one["id"] == "job_manager")
    jobs["args"]["uri_root"] = str(kit / "jobs")
    atomic_io.write(path, json.dumps(values, indent=2))


def zipped(kit: pathlib.Path) -> bytes:
    """A kit as one file, to be handed to a site."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for path in sorted(kit.rglob("*")):
            if path.is_file():
                archive.write(path, path.relative_to(kit).as_posix())
    return buffer.getvalue()


def unzipped(kit: pathlib.Path) -> pathlib.Path:
    """The folder of a kit; of a zip file it is made beside it.

    Raises:
      InputError: no kit.
    """
    if kit.is_dir():
        folder = kit
    else:
        folder = kit.with_suffix("")
        try:
            with zipfile.ZipFile(kit) as archive:
                names = archive.namelist()
                if any(name.startswith(("/", "\\")) or ".." in name.split("/") for name in names):
                    raise InputError(f"{kit} is no kit: it has files that are not below it.")
                if not folder.exists():
                    archive.extractall(folder)
        except (OSError, zipfile.BadZipFile) as error:
            raise InputError(f"{kit} is no kit ({error}); give the file of the server.") from error
    if not (folder / "startup" / "fed_client.json").is_file():
        raise InputError(f"{kit} is no kit of a site: it has no startup/fed_client.json.")
    return folder


def write_job(
    folder: pathlib.Path, spec: FederationSpec, controller: Mapping[str, Any]
) -> pathlib.Path:
    """Write the job that the administrator submits: the names of two classes, and the spec.

    Sites get their part alone: the server's has names of files on its machine.

    Args:
      folder: where to write it; what is there is replaced.
      spec: the federation.
      controller: arguments of the server's class.
    """
    if folder.exists():
        shutil.rmtree(folder)
    apps = {"server": ["server"], "site": list(spec.sites)}
    config = {name: folder / f"app_{name}" / "config" for name in apps}
    for path in config.values():
        path.mkdir(parents=True)
    record = spec.to_record()
    common = {
        "format_version": 2,
        "components": [],
        "task_data_filters": [],
        "task_result_filters": [],
    }
    server = {"id": "federation", "path": CONTROLLER, "args": {"spec": record, **controller}}
    site = {
        "tasks": ["register", "fit"],
        "executor": {"path": EXECUTOR, "args": {"spec": record}},
    }
    meta = {
        "name": PROJECT,
        "resource_spec": {},
        "min_clients": spec.least,
        "deploy_map": {f"app_{name}": where for name, where in apps.items()},
    }
    atomic_io.write(folder / "meta.json", json.dumps(meta))
    atomic_io.write(
        config["server"] / "config_fed_server.json", json.dumps({**common, "workflows": [server]})
    )
    atomic_io.write(
        config["site"] / "config_fed_client.json", json.dumps({**common, "executors": [site]})
    )
    return folder
