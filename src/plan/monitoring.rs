//! The metrics exporter: a Deployment.

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pod::{self, Pod, SECRETS, container, read_only_mount, service_requests, text_env};
use super::scope::Scope;
use super::secret::MONITORING_PASSWORD;
use super::workload::{container_port, deployment, texts};
use super::{Child, postgres};
use crate::domain::names::{self, Component};
use crate::domain::quantity::Size;

/// Where the exporter listens.
pub(super) const PORT: i32 = 9187;

/// `nobody`, which the image names by name; a number is what `runAsNonRoot` can check.
const USER: i64 = 65_534;
const GRACE_SECONDS: i64 = 10;

pub(super) fn plan(scope: &Scope, size: Size, replicas: i32) -> Child {
    let pod = Pod {
        component: Component::Monitoring,
        user: USER,
        grace_seconds: GRACE_SECONDS,
        init_containers: vec![],
        container: exporter(&scope.settings.image(&scope.settings.exporter_image), size),
        volumes: vec![pod::generated_secret(&[MONITORING_PASSWORD])],
        annotations: texts([
            ("prometheus.io/scrape", "true"),
            ("prometheus.io/port", &PORT.to_string()),
            ("prometheus.io/path", "/metrics"),
        ]),
    };
    Child::Deployment(Box::new(deployment(scope, names::MONITORING, replicas, pod)))
}

fn exporter(image: &str, size: Size) -> Container {
    let mut exporter = container("exporter", image, service_requests(size), size);
    let uri = format!("{}:{}/{}?sslmode=disable", names::DATABASE, postgres::PORT, postgres::DATABASE);
    exporter.env = Some(vec![
        text_env("DATA_SOURCE_PASS_FILE", &format!("{SECRETS}/{MONITORING_PASSWORD}")),
        text_env("DATA_SOURCE_URI", &uri),
        text_env("DATA_SOURCE_USER", postgres::MONITORING_ROLE),
    ]);
    exporter.ports = Some(vec![container_port("metrics", PORT)]);
    exporter.volume_mounts = Some(vec![read_only_mount("secrets", SECRETS)]);
    // The front page: metrics would ask the database at every probe.
    let page = |period: i32, failures: i32| Probe {
        http_get: Some(HTTPGetAction {
            path: Some("/".to_owned()),
            port: IntOrString::String("metrics".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(5),
        failure_threshold: Some(failures),
        ..Probe::default()
    };
    exporter.startup_probe = Some(page(1, 60));
    exporter.readiness_probe = Some(page(10, 5));
    exporter.liveness_probe = Some(page(60, 5));
    exporter
}
