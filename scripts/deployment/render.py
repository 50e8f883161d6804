"""Write what Helm makes of the chart's own values, for those without Helm: scripts/deployment/render.py [--check]

kubernetes/torchserve.yaml has the chart's objects. kserve/inference-service.yaml has the same containers as a KServe
InferenceService. It needs helm-python-sdk, of the extra `test`. --check tells whether both files are up to date, and
writes nothing.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

HERE = Path(__file__).resolve().parent
CHART = HERE / "helm" / "torchserve"
PLAIN, KSERVE = HERE / "kubernetes" / "torchserve.yaml", HERE / "kserve" / "inference-service.yaml"
HEAD = """\
# Made by scripts/deployment/render.py from the chart in helm/torchserve: change that, and make this again.
# kubectl apply --namespace NAMESPACE -f {name}
"""
OF_THE_POD = ("automountServiceAccountToken", "securityContext", "terminationGracePeriodSeconds", "volumes")


def render(values: dict[str, Any] | None = None, name: str = "torchserve") -> dict[str, str]:
    """The chart's objects, by file name. Raises helm_python's errors if the chart or the values are wrong."""
    import helm_python

    with helm_python.Chart.load(str(CHART)) as chart:
        chart.validate_schema(values or {})
        files = chart.render(values or {}, name=name, namespace="default")
    made = {Path(path).name: text.strip() for path, text in files.items() if path.endswith(".yaml")}
    return {file: made[file] for file in sorted(made) if made[file]}


def plain() -> str:
    """The chart's objects, one after the other."""
    return HEAD.format(name=PLAIN.name) + "".join(f"---\n{text}\n" for text in render().values())


def kserve() -> str:
    """The deployment's pod as an InferenceService. KServe makes Deployment, Service and autoscaler itself."""
    pod = yaml.safe_load(render()["deployment.yaml"])["spec"]["template"]["spec"]
    torchserve, nginx = pod["containers"]
    without_tls(pod, nginx)
    predictor = {
        "minReplicas": 2,
        "maxReplicas": 8,
        **{key: pod[key] for key in OF_THE_POD},
        "containers": [nginx, torchserve],
    }
    service = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        # The name is the model's: KServe's clients ask for /v1/models/NAME:predict.
        "metadata": {"name": "digits", "annotations": {"serving.kserve.io/deploymentMode": "RawDeployment"}},
        "spec": {"predictor": predictor},
    }
    return HEAD.format(name=KSERVE.name) + yaml.safe_dump(service, sort_keys=False, width=118)


def without_tls(pod: dict[str, Any], nginx: dict[str, Any]) -> None:
    """Make nginx the container that KServe asks. KServe's ingress ends TLS."""
    nginx["name"] = "kserve-container"
    nginx["args"] = nginx["args"][nginx["args"].index("--keys") :]
    nginx["ports"] = [{"name": "http1", "containerPort": 8443, "protocol": "TCP"}]
    nginx["readinessProbe"]["tcpSocket"]["port"] = 8443
    nginx["volumeMounts"] = [mount for mount in nginx["volumeMounts"] if mount["name"] != "tls"]
    pod["volumes"] = [volume for volume in pod["volumes"] if volume["name"] != "tls"]


def main() -> int:
    stale = []
    for target, make in ((PLAIN, plain), (KSERVE, kserve)):
        text = make()
        if sys.argv[1:] != ["--check"]:
            target.write_text(text, encoding="utf-8")
        elif not target.is_file() or target.read_text(encoding="utf-8") != text:
            stale.append(target)
    for target in stale:
        print(f"{target} is not up to date: run scripts/deployment/render.py", file=sys.stderr)
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main())
