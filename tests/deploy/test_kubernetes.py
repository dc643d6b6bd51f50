"""deploy/kubernetes: valid for every version whose schema we have, restricted, and of one mind within itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import kubernetes_validate  # type: ignore[import-untyped]
import pytest
import yaml

from cdc.config import Config
from tests.deploy.dockerfile import read
from tests.deploy.files import DEPLOY, documents, from_text, least_grace

FOLDERS = [DEPLOY / "kubernetes" / name for name in ("standalone", "sidecar")]
VERSIONS = ("1.25", "1.29", "1.33", kubernetes_validate.latest_version())
each_folder = pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)


def one(folder: Path, *kinds: str) -> dict[str, Any]:
    """The folder's one object of these kinds."""
    (found,) = [document for _, document in documents(folder) if document["kind"] in kinds]
    return found


def pod(folder: Path) -> dict[str, Any]:
    """The pod's template."""
    template: dict[str, Any] = one(folder, "Deployment", "StatefulSet")["spec"]["template"]
    return template


def container(folder: Path, name: str = "walsignal") -> dict[str, Any]:
    """One container of the pod."""
    (found,) = [item for item in pod(folder)["spec"]["containers"] if item["name"] == name]
    return dict(found)


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> Config:
    """The ConfigMap's cdc.toml, as the service loads it."""
    text = one(folder, "ConfigMap")["data"]["cdc.toml"]
    return from_text(text, tmp_path, secrets="/run/secrets/walsignal")


@each_folder
def test_the_objects_are_valid(folder: Path) -> None:
    """Strictly, so that a field that no version knows is an error; kustomize is named all of them."""
    listed = yaml.safe_load((folder / "kustomization.yaml").read_text())["resources"]
    files = {file for file, _ in documents(folder) if file.name != "kustomization.yaml"}
    assert {folder / name for name in listed} == files
    for file, document in documents(folder):
        if file in files:
            for version in VERSIONS:
                kubernetes_validate.validate(document, version, strict=True)


def test_a_mistake_is_not_valid() -> None:
    """The check can fail."""
    broken = one(FOLDERS[0], "Deployment")
    broken["spec"]["template"]["spec"]["terminationGracePeriod"] = 60
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(broken, VERSIONS[0], strict=True)


@each_folder
def test_the_pod_meets_the_restricted_standard(folder: Path) -> None:
    """What the namespace's label pod-security.kubernetes.io/enforce=restricted asks, and a root nobody can write."""
    spec = pod(folder)["spec"]
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert spec["automountServiceAccountToken"] is False
    assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
    for item in spec["containers"]:
        context = item["securityContext"]
        assert context["allowPrivilegeEscalation"] is False
        assert context["readOnlyRootFilesystem"] is True
        assert context["capabilities"] == {"drop": ["ALL"]}
        assert item["resources"]["limits"]["memory"]
    kinds = {"emptyDir", "configMap", "secret", "persistentVolumeClaim"}
    assert all(volume.keys() & kinds for volume in spec["volumes"])


@each_folder
def test_the_account_is_that_of_the_image(folder: Path) -> None:
    """Its number, and a group that owns the volume and may read the secret."""
    uid, gid = map(int, read(DEPLOY / "Dockerfile")[-1].last("USER").text.split(":"))
    spec = pod(folder)["spec"]
    context = spec["securityContext"] | container(folder)["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"], context["fsGroup"]) == (uid, gid, gid)
    assert all(volume["secret"]["defaultMode"] == 0o440 for volume in spec["volumes"] if "secret" in volume)


@each_folder
def test_the_grace_period_outlasts_every_stop(folder: Path, config: Config) -> None:
    """The drain, and what comes after it: a pod that is killed in between has events delivered again."""
    assert pod(folder)["spec"]["terminationGracePeriodSeconds"] > least_grace(config)


@each_folder
def test_probes_ask_the_endpoints_of_the_service(folder: Path, config: Config) -> None:
    """Alive for start and life, ready for readiness, on the port that the configuration opens beyond the loopback."""
    item = container(folder)
    (port,) = item["ports"]
    assert (port["name"], port["containerPort"], config.http.host) == ("http", config.http.port, "0.0.0.0")
    assert item["startupProbe"]["httpGet"] == item["livenessProbe"]["httpGet"] == {"path": "/healthz", "port": "http"}
    if folder.name == "standalone":
        assert item["readinessProbe"]["httpGet"] == {"path": "/readyz", "port": "http"}
    else:  # a slow handler must not take the database out of its Service
        assert "readinessProbe" not in item
        assert "readinessProbe" in container(folder, "database")
    notes = pod(folder)["metadata"]["annotations"]
    assert (notes["prometheus.io/port"], notes["prometheus.io/path"]) == (str(config.http.port), "/metrics")


@each_folder
def test_one_pod_at_a_time_has_the_state(folder: Path, config: Config) -> None:
    """One replica, the old one gone first, and the state on a volume that outlives both."""
    owner = one(folder, "Deployment", "StatefulSet")
    mounts = {mount["name"]: mount for mount in container(folder)["volumeMounts"]}
    assert owner["spec"]["replicas"] == 1
    if owner["kind"] == "Deployment":
        assert owner["spec"]["strategy"] == {"type": "Recreate"}
        claim = next(volume for volume in pod(folder)["spec"]["volumes"] if volume["name"] == "state")
        assert claim["persistentVolumeClaim"]["claimName"] == one(folder, "PersistentVolumeClaim")["metadata"]["name"]
    else:
        assert owner["spec"]["serviceName"] == one(folder, "Service")["metadata"]["name"]
        assert "state" in {claim["metadata"]["name"] for claim in owner["spec"]["volumeClaimTemplates"]}
    assert config.state.url.startswith(f"sqlite:///{mounts['state']['mountPath']}/")
    assert "readOnly" not in mounts["state"]


@each_folder
def test_configuration_and_secrets_are_read_only_files(folder: Path) -> None:
    """The ConfigMap lies where CDC_CONFIG looks, secrets are files of volumes, and no variable holds one."""
    volumes = {volume["name"]: volume for volume in pod(folder)["spec"]["volumes"]}
    place = Path(read(DEPLOY / "Dockerfile")[-1].pairs("ENV")["CDC_CONFIG"])
    mounts = {mount["mountPath"]: mount for mount in container(folder)["volumeMounts"]}
    assert place.name in one(folder, "ConfigMap")["data"]
    config_map = volumes[mounts[str(place.parent)]["name"]]["configMap"]["name"]
    assert config_map == one(folder, "ConfigMap")["metadata"]["name"]
    for mount in (mounts[str(place.parent)], mounts["/run/secrets/walsignal"]):
        assert mount["readOnly"] is True
    assert "secret" in volumes[mounts["/run/secrets/walsignal"]["name"]]
    for item in pod(folder)["spec"]["containers"]:
        for variable in item.get("env", []):
            assert "valueFrom" not in variable
            assert "PASSWORD" not in variable["name"] or variable["name"].endswith("_FILE")
        assert {mount["name"] for mount in item["volumeMounts"]} <= volumes.keys() | {"data", "state"}


def test_each_container_of_the_sidecar_pod_sees_its_own_secrets() -> None:
    """The service cannot read the superuser's password, nor the database the DSN; each names the files it is given."""
    volumes = {volume["name"]: volume for volume in pod(FOLDERS[1])["spec"]["volumes"]}
    database = container(FOLDERS[1], "database")
    given = {item["path"] for item in volumes["database-secrets"]["secret"]["items"]}
    wanted = {one["value"] for one in database["env"] if one["name"].endswith("_FILE")}
    assert wanted == {f"/run/secrets/database/{name}" for name in given}
    assert [item["key"] for item in volumes["secrets"]["secret"]["items"]] == ["dsn"]
    items = pod(FOLDERS[1])["spec"]["containers"]
    mounted = {item["name"]: {mount["name"] for mount in item["volumeMounts"]} for item in items}
    assert "database-secrets" not in mounted["walsignal"]
    assert "secrets" not in mounted["database"]


@each_folder
def test_selectors_choose_the_pod(folder: Path, config: Config) -> None:
    """Of the owner, the Service and the NetworkPolicy; Prometheus is let in to the port of the service."""
    labels = pod(folder)["metadata"]["labels"].items()
    policy = one(folder, "NetworkPolicy")["spec"]
    ports = {port["name"] for item in pod(folder)["spec"]["containers"] for port in item["ports"]}
    assert one(folder, "Deployment", "StatefulSet")["spec"]["selector"]["matchLabels"].items() <= labels
    assert one(folder, "Service")["spec"]["selector"].items() <= labels
    assert policy["podSelector"]["matchLabels"].items() <= labels
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert {port["targetPort"] for port in one(folder, "Service")["spec"]["ports"]} <= ports
    scrape = policy["ingress"][-1]
    assert [port["port"] for port in scrape["ports"]] == [config.http.port]
    assert "namespaceSelector" in scrape["from"][0]
