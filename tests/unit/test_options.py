"""Options by header: which headers are one misspelt, and which are of somebody else; what brought a wrong value."""

from __future__ import annotations

import pytest

from handlers import tasks
from handlers.protocol import options
from handlers.protocol.errors import InvalidOption
from handlers.protocol.interface import Interface
from handlers.protocol.options import header_of, one_of, whole_number, yes_or_no
from handlers.protocol.row import Row

MODEL = Interface(
    wanted="a text",
    accepts=lambda media_type: media_type in ("", "text/plain"),
    max_inputs=4,
    options={"top_k": whole_number(1, 5), "truncate": yes_or_no, "normalize": yes_or_no},
    other_options=tasks.option_names(),
)

# What proxies, load balancers, tracers, gateways and client libraries add.
PASSING = """
X-Forwarded-For X-Forwarded-Proto X-Forwarded-Host X-Forwarded-Port X-Forwarded-Server X-Forwarded-Prefix
X-Forwarded-Scheme X-Forwarded-Ssl X-Forwarded-By X-Forwarded-Client-Cert X-Forwarded-Uri X-Forwarded-Method
X-Forwarded-User X-Forwarded-Email X-Forwarded-Access-Token X-Forwarded-Path X-Original-Forwarded-For
X-Original-Host X-Original-URL X-Original-URI X-Original-Method X-Rewrite-URL X-Real-IP X-Real-Port X-Client-IP
X-Client-Id X-Cluster-Client-IP X-ProxyUser-Ip X-Remote-Addr X-Remote-IP X-Host X-Port X-Scheme X-Ssl
X-Request-Id X-Request-Start X-Request-Time X-Request-Timeout X-Requested-With X-Correlation-Id X-Trace-Id
X-Trace X-Span-Id X-Transaction-Id X-Session-Id X-B3-TraceId X-B3-SpanId X-B3-ParentSpanId X-B3-Sampled
X-B3-Flags X-Ot-Span-Context X-Datadog-Trace-Id X-Datadog-Parent-Id X-Datadog-Sampling-Priority X-Datadog-Origin
X-Datadog-Tags X-Newrelic-Id X-Newrelic-Transaction X-Amzn-Trace-Id X-Amz-Cf-Id X-Amz-Date X-Amz-Security-Token
X-Amz-Content-Sha256 X-Amzn-Requestid X-Amzn-Oidc-Data X-Amzn-Oidc-Identity X-Amzn-Oidc-Accesstoken
X-Cloud-Trace-Context X-Goog-Api-Key X-Goog-Api-Client X-Goog-User-Project X-Goog-Authenticated-User-Email
X-Goog-Iap-Jwt-Assertion X-Azure-Ref X-Azure-Clientip X-Azure-Fdid X-Ms-Client-Request-Id X-Ms-Client-Principal
X-ARR-Log-Id X-ARR-SSL X-AppService-Proto X-Site-Deployment-Id X-WAWS-Unencoded-URL X-Envoy-External-Address
X-Envoy-Expected-Rq-Timeout-Ms X-Envoy-Attempt-Count X-Envoy-Original-Path X-Envoy-Decorator-Operation
X-Envoy-Peer-Metadata X-Envoy-Peer-Metadata-Id X-Envoy-Internal X-Istio-Attributes X-Kong-Proxy-Latency
X-Kong-Upstream-Latency X-Consumer-Id X-Consumer-Username X-Consumer-Custom-Id X-Credential-Identifier
X-Anonymous-Consumer X-Authenticated-Scope X-Authenticated-Userid X-Auth-Request-User X-Auth-Request-Email
X-Auth-Token X-Auth-User X-Access-Token X-Api-Key X-Api-Version X-Token X-User-Id X-User X-Tenant-Id X-Org-Id
X-Organization X-Project-Id X-Csrf-Token X-Xsrf-Token X-CSRFToken X-Http-Method-Override X-Http-Method
X-Method-Override X-Do-Not-Track X-Wap-Profile X-UIDH X-Att-Deviceid X-Device-Id X-Device-Type X-App-Version
X-Client-Version X-Client-Name X-Client-Data X-Build-Id X-Version X-Environment X-Content-Type-Options
X-Content-Length X-Content-Type X-Content-Encoding X-Upload-Content-Type X-Payload-Type X-Powered-By X-Cache
X-Via X-Nginx-Proxy X-Proxy-Id X-Proxy-Connection X-Loop X-Hop-Count X-Retry-Count X-Retries X-Attempt
X-Idempotency-Key X-Priority X-Timeout X-Deadline X-Country-Code X-Geo-Country X-Locale X-Language X-Timezone
X-Stainless-Lang X-Stainless-Package-Version X-Stainless-Os X-Stainless-Arch X-Stainless-Runtime
X-Stainless-Runtime-Version X-Stainless-Async X-Stainless-Retry-Count X-Stainless-Read-Timeout
X-Stainless-Raw-Response X-Wait-For-Model X-Use-Cache X-Compute-Type X-Compute-Characters X-Inference-Id
X-Model-Id X-Model X-Task X-GitHub-Event X-Hub-Signature X-Vercel-Id X-Render-Origin-Server X-Railway-Edge X-LB
X-Backend X-Server X-Source X-Origin X-Sampled X-Debug X-Scope-OrgID X-Grafana-Id X-Sentry-Trace X-K X-N Accept
Accept-Encoding Authorization Cache-Control Connection Content-Length Content-Type Cookie Date Expect Forwarded
Host Origin Pragma Referer Sec-Fetch-Mode TE Traceparent Tracestate Upgrade User-Agent Via Priority Topic Type
Format Encoding CF-Ray CF-Connecting-IP True-Client-IP Fastly-Client-IP OpenAI-Organization Api-Key
"""


@pytest.mark.parametrize("header", PASSING.split())
def test_headers_of_proxies_and_clients_pass(header: str) -> None:
    assert options.of_row(Row.of({}, {header: "1"}), MODEL) == {}


@pytest.mark.parametrize(
    "header",
    [
        *(
            "X-Top-N",
            "X-Top",
            "X-TopK",
            "X-Topk",
            "X-Top-Kk",
            "X-Tpo-K",
            "X-Top-P",
            "X-Top-K-Results",
            "Top-K",
            "top_k",
        ),
        *("X-Truncated", "X-Truncation", "X-Trunc", "X-Truncat", "X-Trunkate", "X-Truncate-Inputs", "Truncate"),
        *("X-Normalise", "X-Normalized", "X-Norm-alize"),
        # Options of other models.
        *("X-Dtype", "X-Dtypes", "X-D-Type", "X-Data-Type", "X-Dytpe", "Dtype"),
        *("X-Encoding-Format", "X-Encoding", "X-Format", "X-Encoding-Formats", "X-Encodingformat", "Encoding-Format"),
    ],
)
def test_headers_that_resemble_an_option_are_refused(header: str) -> None:
    with pytest.raises(InvalidOption) as caught:
        options.of_row(Row.of({}, {header: "1"}), MODEL)
    assert repr(header.lower()) in caught.value.message
    assert "x-normalize, x-top-k, x-truncate" in caught.value.message


def test_each_option_is_known_by_its_own_header() -> None:
    sent = {"X-Top-K": "3", "X-Truncate": "TRUE", "x-normalize": "false"}
    assert options.of_row(Row.of({}, sent), MODEL) == {"top_k": 3, "truncate": True, "normalize": False}


@pytest.mark.parametrize(
    ("parameters", "headers", "source"),
    [
        ({"top_k": b"9"}, {}, "parameter top_k: wanted"),
        ({}, {"X-Top-K": "9"}, "header x-top-k: wanted"),
        ({}, {"X-Truncate": "1"}, "header x-truncate: wanted"),
    ],
)
def test_a_wrong_value_is_reported_with_what_brought_it(
    parameters: dict[str, bytes], headers: dict[str, str], source: str
) -> None:
    with pytest.raises(InvalidOption) as caught:
        options.of_row(Row.of(parameters, headers), MODEL)
    assert caught.value.message.startswith(source)


OF_TASKS = (
    *("raw_scores", "aggregation_strategy", "candidate_labels", "hypothesis_template", "multi_label"),
    "max_active_dims",
)


def test_every_option_of_a_task_is_among_those_that_other_models_refuse() -> None:
    known = {"top_k", "truncate", "truncation_direction", "dtype", "encoding_format", "normalize", "dimensions"}
    assert set(tasks.option_names()) == {*known, *OF_TASKS, "prompt_name"}
    assert header_of("encoding_format") == "x-encoding-format"


def test_one_of_takes_its_words_alone() -> None:
    assert one_of(("a", "b"))("b") == "b"
    with pytest.raises(ValueError, match="wanted: a, b"):
        one_of(("a", "b"))("c")
