//! The dashboard: Service and Deployment.

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, Probe, Service};
use k8s_openapi::api::networking::v1::{
    HTTPIngressPath, HTTPIngressRuleValue, Ingress, IngressBackend, IngressRule, IngressServiceBackend, IngressSpec,
    ServiceBackendPort,
};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::pod::{self, Pod, SECRETS, container, mount, read_only_mount, service_requests, text_env};
use super::scope::Scope;
use super::secret::{DATABASE_PASSWORD, REDIS_PASSWORD};
use super::workload::{cluster_service, container_port, deployment, texts};
use super::{Child, postgres, redis};
use crate::domain::names::{self, Component, annotation};
use crate::domain::quantity::Bytes;
use crate::validate::Dashboard;

/// Where the dashboard listens.
pub(super) const PORT: i32 = 8501;

/// Any user but root; the image names none.
const USER: i64 = 10_001;
const GRACE_SECONDS: i64 = 30;

pub(super) fn plan(scope: &Scope, dashboard: &Dashboard, replicas: i32) -> Vec<Child> {
    let pod = Pod {
        component: Component::Dashboard,
        user: USER,
        grace_seconds: GRACE_SECONDS,
        init_containers: vec![],
        container: server(scope, dashboard),
        volumes: vec![pod::generated_secret(&[DATABASE_PASSWORD, REDIS_PASSWORD]), pod::scratch("tmp", Bytes::mi(128))],
        annotations: [].into(),
    };
    let mut children = vec![
        Child::Service(service(scope, dashboard)),
        Child::Deployment(Box::new(deployment(scope, names::DASHBOARD, replicas, pod))),
    ];
    children.extend(ingress(scope, dashboard).map(Child::Ingress));
    children
}

/// The same at every stage: while no pod is ready the proxy drops the route, and whatever it has for all other hosts
/// answers, which is the gateway.
fn ingress(scope: &Scope, dashboard: &Dashboard) -> Option<Ingress> {
    let (class, host) = (scope.settings.ingress_class.clone()?, dashboard.host.clone()?);
    let port = ServiceBackendPort { name: Some("http".to_owned()), number: None };
    let service = IngressServiceBackend { name: names::DASHBOARD.to_owned(), port: Some(port) };
    let path = HTTPIngressPath {
        path: Some("/".to_owned()),
        path_type: "Prefix".to_owned(),
        backend: IngressBackend { service: Some(service), resource: None },
    };
    let http = HTTPIngressRuleValue { paths: vec![path] };
    Some(Ingress {
        metadata: scope.owned(names::DASHBOARD, Component::Dashboard),
        spec: Some(IngressSpec {
            ingress_class_name: Some(class),
            rules: Some(vec![IngressRule { host: Some(host), http: Some(http) }]),
            ..IngressSpec::default()
        }),
        status: None,
    })
}

fn service(scope: &Scope, dashboard: &Dashboard) -> Service {
    let mut service = cluster_service(scope, names::DASHBOARD, Component::Dashboard, "http", PORT);
    service.metadata.annotations = dashboard.host.as_deref().map(|host| texts([(annotation::HOST, host)]));
    service
}

fn server(scope: &Scope, dashboard: &Dashboard) -> Container {
    let mut server = container(
        "dashboard",
        &scope.settings.image(&dashboard.image),
        service_requests(dashboard.size),
        dashboard.size,
    );
    server.env = Some(vec![
        text_env("DATABASE_HOST", names::DATABASE),
        text_env("DATABASE_NAME", postgres::DATABASE),
        text_env("DATABASE_PASSWORD_FILE", &format!("{SECRETS}/{DATABASE_PASSWORD}")),
        text_env("DATABASE_PORT", &postgres::PORT.to_string()),
        text_env("DATABASE_USER", postgres::DATABASE),
        text_env("HOME", "/tmp"),
        text_env("PYTHONDONTWRITEBYTECODE", "1"),
        text_env("REDIS_HOST", names::REDIS),
        text_env("REDIS_PASSWORD_FILE", &format!("{SECRETS}/{REDIS_PASSWORD}")),
        text_env("REDIS_PORT", &redis::PORT.to_string()),
        text_env("STREAMLIT_BROWSER_GATHER_USAGE_STATS", "false"),
    ]);
    server.ports = Some(vec![container_port("http", PORT)]);
    server.volume_mounts = Some(vec![read_only_mount("secrets", SECRETS), mount("tmp", "/tmp")]);
    let health = |period: i32, failures: i32| Probe {
        http_get: Some(HTTPGetAction {
            path: Some("/_stcore/health".to_owned()),
            port: IntOrString::String("http".to_owned()),
            ..HTTPGetAction::default()
        }),
        period_seconds: Some(period),
        timeout_seconds: Some(5),
        failure_threshold: Some(failures),
        ..Probe::default()
    };
    // Python imports on a fraction of a core take a while.
    server.startup_probe = Some(health(1, 300));
    server.readiness_probe = Some(health(10, 3));
    server.liveness_probe = Some(health(30, 5));
    server
}
