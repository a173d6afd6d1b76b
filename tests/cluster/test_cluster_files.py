"""The cluster files: valid for Ray, Google's API and KubeRay, closed to the internet, consistent with each other.

Nothing here starts a cluster or reaches a cloud. gcp.yaml is held against Ray's own schema, and where that is open
against the fields of Google's API; the KubeRay files against KubeRay's API (the schemas beside this file).
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import ray.autoscaler
import yaml
from ray.autoscaler._private.kuberay.autoscaling_config import _derive_autoscaling_config_from_ray_cr
from ray.autoscaler._private.util import prepare_config, validate_config

from raysid.config import Config
from raysid.recipes import load_recipe

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CLUSTER = ROOT / "cluster"
FILES = ["gcp.yaml", "kuberay/raycluster.yaml", "kuberay/rayjob.yaml"]
KUBERAY = {"kuberay/raycluster.yaml": "RayCluster", "kuberay/rayjob.yaml": "RayJob"}
RAY_SCHEMA = json.loads((Path(ray.autoscaler.__file__).parent / "ray-schema.json").read_text())
GCE_SCHEMA = yaml.safe_load((HERE / "gce-instance.schema.yaml").read_text())
KUBERAY_SCHEMA = yaml.safe_load((HERE / "kuberay.schema.yaml").read_text())

# The keys of `provider` that Ray's Google provider reads; Ray's schema leaves them open.
PROVIDER = {"type", "project_id", "region", "availability_zone", "use_internal_ips", "cache_stopped_nodes"}
# Keys whose names are free: their values are checked below.
OUR_NAMES = {
    "gcp.yaml": r"metadata\.|file_mounts\.|available_node_types\.(learner|teacher)$|.*\.(resources|labels)\.",
    "kuberay": r"metadata\.annotations\.|.*(groupSpec|Specs\.\d)\.(labels|resources)\.|.*\.nodeSelector\.",
}

Path_ = tuple[str | int, ...]


def load(name: str) -> Any:
    """A cluster file, with aliases expanded."""
    return json.loads(as_json(name))


@functools.cache
def as_json(name: str) -> str:
    return json.dumps(yaml.safe_load((CLUSTER / name).read_text()))


def problems(name: str, document: Any) -> list[str]:
    """The errors in a cluster file's content."""
    if name in KUBERAY:
        schema = {"$ref": f"#/$defs/{KUBERAY[name]}", "$defs": KUBERAY_SCHEMA["$defs"]}
        return schema_errors(document, schema)
    found = schema_errors(document, RAY_SCHEMA)
    found += [f"provider.{key} is unknown" for key in document.get("provider", {}).keys() - PROVIDER]
    for node, settings in document.get("available_node_types", {}).items():
        found += [f"{node}: {line}" for line in schema_errors(settings.get("node_config"), GCE_SCHEMA)]
    if found:
        return found
    try:
        validate_config(prepare_config(document))  # as `ray up` does before it talks to Google
    except (ValueError, RuntimeError) as error:
        return [str(error)]
    return []


def schema_errors(document: Any, schema: Any) -> list[str]:
    validator = jsonschema.validators.validator_for(schema, jsonschema.Draft202012Validator)(schema)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(document)]


def keys(value: Any, path: Path_ = ()) -> Iterator[Path_]:
    """The path of every key of every mapping."""
    entries = (
        value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    )
    for key, inner in entries:
        if isinstance(value, dict):
            yield (*path, key)
        yield from keys(inner, (*path, key))


def changed(name: str, path: Path_, key: str | int, value: Any) -> Any:
    """The file with another key or value at the path."""
    document = load(name)
    parent = document
    for step in path[:-1]:
        parent = parent[step]
    del parent[path[-1]]
    parent[key] = value
    return document


def dotted(path: Path_) -> str:
    return ".".join(map(str, path))


def at(name: str, path: Path_) -> Any:
    value = load(name)
    for step in path:
        value = value[step]
    return value


def constraint(package: str) -> str:
    match = re.search(rf"^{package}==(\S+)$", (ROOT / "constraints.txt").read_text(), re.MULTILINE)
    assert match
    return match[1]


def ray_cluster_spec(name: str) -> Any:
    spec = load(name)["spec"]
    return spec.get("rayClusterSpec", spec)


def node_types(name: str) -> dict[str, Any]:
    """The node types as Ray's autoscaler reads them."""
    if name not in KUBERAY:
        return prepare_config(load(name))["available_node_types"]
    cluster = {"metadata": {"name": "raysid", "namespace": "default"}, "spec": ray_cluster_spec(name)}
    return _derive_autoscaling_config_from_ray_cr(cluster)["available_node_types"]


# Keys.


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_accepted(name: str) -> None:
    assert problems(name, load(name)) == []


@pytest.mark.parametrize("name", FILES)
def test_a_misspelt_key_is_refused_anywhere(name: str) -> None:
    ours = re.compile(OUR_NAMES["kuberay" if name in KUBERAY else name], re.IGNORECASE)
    paths = [path for path in keys(load(name)) if not ours.match(dotted(path))]
    assert len(paths) > 80
    accepted = [
        path for path in paths if not problems(name, changed(name, path, f"{path[-1]}s", at(name, path)))
    ]
    assert [dotted(path) for path in accepted] == []


@pytest.mark.parametrize(
    "name, path, value",
    [
        (
            "gcp.yaml",
            ("available_node_types", "teacher", "node_config", "scheduling", "provisioningModel"),
            "spot",
        ),
        ("gcp.yaml", ("available_node_types", "teacher", "resources", "teacher"), "1"),
        ("gcp.yaml", ("available_node_types", "learner", "min_workers"), 99),
        ("gcp.yaml", ("head_node_type",), "heads"),
        ("kuberay/raycluster.yaml", ("spec", "authOptions", "mode"), "tokens"),
        ("kuberay/raycluster.yaml", ("spec", "workerGroupSpecs", 1, "resources", "teacher"), 1),
        ("kuberay/rayjob.yaml", ("spec", "submissionMode"), "K8sJob"),
        ("kuberay/rayjob.yaml", ("spec", "rayClusterSpec", "workerGroupSpecs", 0, "minReplicas"), "2"),
    ],
)
def test_a_wrong_value_is_refused(name: str, path: Path_, value: Any) -> None:
    assert problems(name, changed(name, path, path[-1], value))


def test_a_users_settings_come_first_and_are_used() -> None:
    for name in FILES:
        document = load(name)
        metadata = document.pop("metadata")
        for key, value in metadata.get("annotations", metadata).items():
            assert json.dumps(value) in json.dumps(document), f"{name}: {key} is used nowhere"
    # The project's name, which all of Google's names hold, occurs nowhere else.
    top, _, below = (CLUSTER / "gcp.yaml").read_text().partition("\ncluster_name:")
    assert "my-project" in top and "us-central1" in top
    assert "my-project" not in below and "us-central1" not in below


# Network access.


@pytest.mark.parametrize("name", [*FILES, "Dockerfile", "gcp-setup.sh", "../docs/clusters.md"])
def test_nothing_is_open_to_every_address(name: str) -> None:
    assert not re.search(r"0\.0\.0\.0|::/0", (CLUSTER / name).read_text())


def test_google_machines_have_no_external_address() -> None:
    config = load("gcp.yaml")
    assert config["provider"]["use_internal_ips"] is True
    for node in config["available_node_types"].values():
        # Without `networkInterfaces` Ray chooses a subnet with external addresses.
        (interface,) = node["node_config"]["networkInterfaces"]
        assert interface.keys() == {"subnetwork"}
        assert node["node_config"]["tags"] == {"items": ["raysid"]}
    # From outside only through Google's proxy, which needs the machine's name.
    assert "start-iap-tunnel %h 22 --listen-on-stdin" in config["auth"]["ssh_proxy_command"]
    assert config["auth"]["ssh_proxy_use_node_id"] is True


def test_the_dashboard_answers_on_the_head_only() -> None:
    (start,) = [line for line in load("gcp.yaml")["head_start_ray_commands"] if "ray start" in line]
    assert "--dashboard-host=127.0.0.1" in start.split()
    for name in KUBERAY:
        head = ray_cluster_spec(name)["headGroupSpec"]
        assert head["serviceType"] == "ClusterIP" and head["enableIngress"] is False


@pytest.mark.parametrize("name", KUBERAY)
def test_pods_have_no_privileges(name: str) -> None:
    spec = ray_cluster_spec(name)
    assert spec["autoscalerOptions"]["securityContext"]["allowPrivilegeEscalation"] is False
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        pod = group["template"]["spec"]
        assert pod["securityContext"]["runAsNonRoot"] is True
        for container in pod["containers"]:
            assert container["securityContext"]["allowPrivilegeEscalation"] is False


def run_setup(folder: Path, exists: bool) -> list[list[str]]:
    """The gcloud commands of gcp-setup.sh, from a stand-in for gcloud that records them."""
    gcloud = folder / "gcloud"
    gcloud.write_text(
        f'#!/bin/bash\nprintf "%s\\t" "$@" >> {folder}/log; echo >> {folder}/log\n'
        f'case " $* " in *" describe "*) exit {int(not exists)} ;; esac\n'
    )
    gcloud.chmod(0o755)
    environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"}
    command = [str(CLUSTER / "gcp-setup.sh"), "my-project", "us-central1", "my-bucket"]
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=60)
    return [line.rstrip("\t").split("\t") for line in (folder / "log").read_text().splitlines()]


def flags(command: list[str]) -> dict[str, str]:
    return dict(part[2:].split("=", 1) for part in command if part.startswith("--") and "=" in part)


def test_firewall_rules_let_in_the_cluster_itself_and_ssh_from_the_proxy(tmp_path: Path) -> None:
    rules = [flags(c) for c in run_setup(tmp_path, exists=False) if c[1:3] == ["firewall-rules", "create"]]
    among, ssh = rules
    assert all(rule["target-tags"] == "raysid" and rule["network"] == "raysid" for rule in rules)
    assert among["source-tags"] == "raysid" and "source-ranges" not in among
    assert ssh["source-ranges"] == "35.235.240.0/20" and ssh["allow"] == "tcp:22"


def test_the_setup_creates_the_resources_of_gcp_yaml_once(tmp_path: Path) -> None:
    for folder in ("first", "again"):
        (tmp_path / folder).mkdir()
    first = run_setup(tmp_path / "first", exists=False)
    made = {" ".join(command[: command.index("create") + 2]) for command in first if "create" in command}
    top = load("gcp.yaml")["metadata"]
    assert f"compute networks subnets create {top['subnetwork'].rsplit('/', 1)[1]}" in made
    assert f"iam service-accounts create {top['worker_account'].split('@')[0]}" in made
    assert "iam service-accounts create ray-autoscaler-sa-v1" in made  # the name is Ray's
    assert "storage buckets create gs://my-bucket" in made
    assert all("--project=my-project" in command for command in first)
    again = run_setup(tmp_path / "again", exists=True)
    assert not [command for command in again if "create" in command]


def test_workers_have_an_account_for_storage_and_images_only(tmp_path: Path) -> None:
    worker = load("gcp.yaml")["metadata"]["worker_account"]
    for node in ("learner", "teacher"):
        config = load("gcp.yaml")["available_node_types"][node]["node_config"]
        assert config["serviceAccounts"] == [
            {"email": worker, "scopes": ["https://www.googleapis.com/auth/cloud-platform"]}
        ]
    granted = [flags(c) for c in run_setup(tmp_path, exists=False) if "add-iam-policy-binding" in c]
    assert {grant["role"] for grant in granted if grant["member"] == f"serviceAccount:{worker}"} == {
        "roles/artifactregistry.reader",
        "roles/storage.objectUser",
        "roles/storage.legacyBucketReader",
    }


# The token.


def test_every_node_asks_for_the_token() -> None:
    config = load("gcp.yaml")
    options = dict(
        line.split(" ", 1)[1].split("=", 1) for line in config["docker"]["run_options"] if "--env" in line
    )
    assert options["RAY_AUTH_MODE"] == "token"
    # An unreadable token path stops Ray; it does not start without a token.
    assert config["file_mounts"][options["RAY_AUTH_TOKEN_PATH"]] == "~/.ray/auth_token"
    for name in KUBERAY:
        assert ray_cluster_spec(name)["authOptions"]["mode"] == "token"


# Placement of the roles.


@pytest.mark.parametrize("name", FILES)
def test_the_autoscaler_receives_the_roles_resources(name: str) -> None:
    nodes = node_types(name)
    for role in ("learner", "teacher"):
        resources = nodes[role]["resources"]
        assert resources["GPU"] == 1 and resources[role] == 1 and resources["CPU"] >= 1
        assert nodes[role]["labels"]["raysid/role"] == role
        assert {"learner", "teacher"} & resources.keys() == {role}
    (head,) = nodes.keys() - {"learner", "teacher"}
    assert not {"GPU", "learner", "teacher"} & nodes[head]["resources"].keys()
    assert nodes[head]["resources"]["CPU"] >= 1  # Ray Data's tasks, beside those on the learners' nodes


@pytest.mark.parametrize("name", FILES)
def test_teachers_start_from_zero_on_spot_machines(name: str) -> None:
    teacher, learner = node_types(name)["teacher"], node_types(name)["learner"]
    assert teacher["min_workers"] == 0 and teacher["max_workers"] == 4
    # A job's cluster lives for one job: it needs the learners' nodes from the start.
    assert (
        learner["min_workers"] == (2 if name == "kuberay/rayjob.yaml" else 0) and learner["max_workers"] == 2
    )
    if name == "gcp.yaml":
        scheduling = {
            role: node["node_config"].get("scheduling", {}) for role, node in node_types(name).items()
        }
        assert scheduling["teacher"]["provisioningModel"] == "SPOT"
        assert scheduling["teacher"]["instanceTerminationAction"] == "DELETE"
        for role in ("head", "learner"):
            assert not {"provisioningModel", "preemptible"} & scheduling[role].keys()
        for role in ("learner", "teacher"):
            assert scheduling[role]["onHostMaintenance"] == "TERMINATE"  # Google's condition for GPUs
    else:
        spot = "cloud.google.com/gke-spot"
        pods = {g["groupName"]: g["template"]["spec"] for g in ray_cluster_spec(name)["workerGroupSpecs"]}
        assert pods["teacher"]["nodeSelector"][spot] == "true"
        assert spot in [toleration["key"] for toleration in pods["teacher"]["tolerations"]]
        assert spot not in [toleration["key"] for toleration in pods["learner"]["tolerations"]]
        assert {"key": spot, "operator": "DoesNotExist"} in [
            expression
            for term in pods["learner"]["affinity"]["nodeAffinity"][
                "requiredDuringSchedulingIgnoredDuringExecution"
            ]["nodeSelectorTerms"]
            for expression in term["matchExpressions"]
        ]


def test_the_workers_limit_holds_all_of_them() -> None:
    config = load("gcp.yaml")
    assert config["max_workers"] == sum(
        node["max_workers"] for node in config["available_node_types"].values()
    )


def test_the_job_is_the_cluster_with_its_learners_there() -> None:
    cluster, job = ray_cluster_spec("kuberay/raycluster.yaml"), ray_cluster_spec("kuberay/rayjob.yaml")
    learners = job["workerGroupSpecs"][0]
    assert learners["replicas"] == learners["minReplicas"] == learners["maxReplicas"]
    learners["replicas"] = learners["minReplicas"] = 0
    assert job == cluster


# The job.


def config_of(arguments: list[str]) -> Config:
    """The config of `distill RECIPE --dotted.name VALUE ...`."""
    recipe, options = arguments[0], arguments[1:]
    overrides = dict(zip([name.removeprefix("--") for name in options[::2]], options[1::2], strict=True))
    config = load_recipe(recipe, overrides, "distill")
    assert isinstance(config, Config)
    return config


def assert_aimed(config: Config) -> None:
    assert config.storage.startswith("gs://")
    asked = config.resources
    assert asked.teacher.resources == {"teacher": 1}
    assert asked.fake_score.resources == asked.generator.resources == {"learner": 1}
    assert asked.teacher.device == asked.fake_score.device == asked.generator.device == "cuda"


def test_the_job_asks_for_the_learners_and_the_teachers_nodes() -> None:
    words = shlex.split(load("kuberay/rayjob.yaml")["spec"]["entrypoint"])
    # The submitter's shell parses it, `ray job submit` quotes it again, and the head's shell parses that.
    assert shlex.split(shlex.join(words)) == shlex.split(subprocess.list2cmdline(words)) == words
    assert words[:2] == ["python", "/home/ray/raysid/jobs/distill.py"]
    assert_aimed(config_of(words[2:]))


def test_the_guide_asks_for_them_too() -> None:
    text = (ROOT / "docs" / "clusters.md").read_text().replace("\\\n", " ")
    (command,) = re.findall(r"^(raysid submit distill .*--address.*--resources.*)$", text, re.MULTILINE)
    words = shlex.split(command)[3:]
    at = words.index("--address")
    assert words[at + 1] == "http://127.0.0.1:8265"
    assert_aimed(config_of(words[:at] + words[at + 2 :]))


# Versions and the image.


def test_all_files_have_the_versions_of_constraints() -> None:
    version = constraint("ray")
    dockerfile = (CLUSTER / "Dockerfile").read_text()
    assert re.findall(r"^ARG RAY_VERSION=(.*)$", dockerfile, re.MULTILINE) == [version]
    assert re.findall(r"^FROM (.*)$", dockerfile, re.MULTILINE) == ["rayproject/ray:${RAY_VERSION}-py311"]
    config, specs = load("gcp.yaml"), [ray_cluster_spec(name) for name in KUBERAY]
    repository = "us-central1-docker.pkg.dev/my-project/raysid/raysid"
    head, worker = f"{repository}:ray{version}-cpu", f"{repository}:ray{version}-gpu"
    assert (config["docker"]["head_image"], config["docker"]["worker_image"]) == (head, worker)
    for spec in specs:
        assert spec["rayVersion"] == version
        assert {c["image"] for c in spec["headGroupSpec"]["template"]["spec"]["containers"]} == {head}
        groups = spec["workerGroupSpecs"]
        assert {c["image"] for group in groups for c in group["template"]["spec"]["containers"]} == {worker}
    everywhere = "".join((CLUSTER / name).read_text() for name in [*FILES, "Dockerfile"])
    everywhere += (ROOT / "docs" / "clusters.md").read_text()
    assert set(re.findall(r":ray([\d.]+)-[cg]pu", everywhere)) == {version}
    host = repository.split("/")[0]
    for node in ("learner", "teacher"):
        assert (
            f"gcloud auth configure-docker {host} --quiet"
            in config["available_node_types"][node]["initialization_commands"]
        )


def instructions() -> list[tuple[str, str]]:
    text = re.sub(r"^#.*\n", "", (CLUSTER / "Dockerfile").read_text(), flags=re.MULTILINE)
    lines = text.replace("\\\n", " ").splitlines()
    return [(line.split(" ", 1)[0], line.split(" ", 1)[1]) for line in lines if line.strip()]


def test_the_image_is_built_from_the_constraints_and_not_run_by_root() -> None:
    steps = instructions()
    assert [argument for word, argument in steps if word == "USER"] == ["1000"]
    installs = re.findall(
        r"pip install .*?(?=&&|$)", "\n".join(a for word, a in steps if word == "RUN"), re.M
    )
    assert len(installs) == 3
    assert all("--constraint constraints.txt" in line or "--no-deps" in line for line in installs)


def test_the_image_copies_what_the_build_context_holds() -> None:
    copied = [word for name, a in instructions() if name == "COPY" for word in a.split()[1:-1]]
    seen = [line[1:] for line in (CLUSTER / "Dockerfile.dockerignore").read_text().split() if line[0] == "!"]
    assert sorted(copied) == sorted(seen)
    assert [name for name in copied if name != "jobs" and not (ROOT / name).exists()] == []


@pytest.mark.skipif(not (ROOT / "jobs").exists(), reason="jobs/ comes with `raysid submit`")
def test_the_job_that_the_image_runs_is_there() -> None:
    assert (ROOT / "jobs" / "distill.py").is_file()
