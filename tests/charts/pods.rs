//! What every pod of Torpor has, with any values.

use serde_json::{Value, json};

use super::{RENDERS, object, objects, render};

const COMPONENTS: [&str; 3] = ["operator", "hibernator", "gateway"];

/// Every pod of every render, with a name for messages.
fn pods() -> Vec<(String, Value)> {
    let mut pods = Vec::new();
    for (render_name, values) in RENDERS {
        for found in objects(&render("torpor", values).expect("it renders")) {
            let spec = match found["kind"].as_str() {
                Some("Deployment") => &found["spec"]["template"]["spec"],
                Some("Pod") => &found["spec"],
                _ => continue,
            };
            pods.push((format!("{render_name}: {}", found["metadata"]["name"]), spec.clone()));
        }
    }
    assert_eq!(pods.len(), RENDERS.len() * 4, "each render has three Deployments and the pod of `helm test`");
    pods
}

/// The Pod Security level `restricted` and more. The integration test has the API server enforce it.
#[test]
fn pods_are_restricted() {
    for (name, pod) in pods() {
        let security = &pod["securityContext"];
        assert_eq!(security["runAsNonRoot"], true, "{name}");
        assert_eq!(security["runAsUser"], 65532, "{name}");
        assert_eq!(security["seccompProfile"], json!({"type": "RuntimeDefault"}), "{name}");
        assert_eq!(pod["enableServiceLinks"], false, "{name}");
        assert!(pod["hostNetwork"].is_null() && pod["hostPID"].is_null() && pod["hostIPC"].is_null(), "{name}");
        for container in pod["containers"].as_array().expect("containers") {
            let security = &container["securityContext"];
            assert_eq!(security["allowPrivilegeEscalation"], false, "{name}");
            assert_eq!(security["readOnlyRootFilesystem"], true, "{name}");
            assert_eq!(security["capabilities"], json!({"drop": ["ALL"]}), "{name}");
            assert!(container["resources"]["limits"]["memory"].is_string(), "{name} has no bound on memory");
            assert!(!container["resources"]["requests"]["cpu"].is_null(), "{name} asks for no CPU");
            for mount in container["volumeMounts"].as_array().into_iter().flatten() {
                assert_eq!(mount["readOnly"], true, "{name}: {mount}");
                // Files that are mounted one by one never change.
                assert!(mount["subPath"].is_null(), "{name}: {mount}");
            }
        }
        for volume in pod["volumes"].as_array().into_iter().flatten() {
            assert!(volume["secret"].is_object() || volume["configMap"].is_object(), "{name}: {volume}");
        }
    }
}

/// A token is there where the API is used, and nowhere else.
#[test]
fn only_components_have_tokens() {
    for (name, pod) in pods() {
        let wanted = !name.contains("torpor-check");
        assert_eq!(pod["automountServiceAccountToken"], wanted, "{name}");
        assert_eq!(pod["serviceAccountName"].is_string(), wanted, "{name}");
    }
}

/// Selectors, Services, budgets and policies find the pods that they are for, and no others.
#[test]
fn selectors_find_their_pods() {
    let objects = objects(&render("torpor", &["examples/aks/values.yaml"]).expect("it renders"));
    let labels = |component: &str| {
        let deployment = object(&objects, "Deployment", &format!("torpor-{component}"));
        deployment["spec"]["template"]["metadata"]["labels"].as_object().expect("labels").clone()
    };
    let finds = |selector: &Value, component: &str| {
        let labels = labels(component);
        selector.as_object().expect("a selector").iter().all(|(key, value)| labels.get(key) == Some(value))
    };
    for component in COMPONENTS {
        let name = format!("torpor-{component}");
        let metrics = format!("{name}-metrics");
        let selectors = [
            &object(&objects, "Deployment", &name)["spec"]["selector"]["matchLabels"],
            &object(&objects, "Service", &metrics)["spec"]["selector"],
            &object(&objects, "PodDisruptionBudget", &name)["spec"]["selector"]["matchLabels"],
            &object(&objects, "NetworkPolicy", &name)["spec"]["podSelector"]["matchLabels"],
        ];
        for selector in selectors {
            for other in COMPONENTS {
                assert_eq!(finds(selector, other), other == component, "{selector} and the pods of {other}");
            }
        }
    }
    let door = &object(&objects, "Service", "torpor-gateway")["spec"]["selector"];
    assert!(finds(door, "gateway") && !finds(door, "operator"));
}

/// Two Torpors in one cluster would fight; names that are the same everywhere keep Helm from installing a second.
#[test]
fn names_do_not_depend_on_the_release() {
    let names = |release: &str| {
        let text =
            super::ran(&["template", release, "charts/torpor", "--namespace", "torpor-system"]).expect("it renders");
        let names: Vec<String> =
            objects(&text).iter().map(|object| format!("{} {}", object["kind"], object["metadata"]["name"])).collect();
        names
    };
    assert_eq!(names("torpor"), names("another"));
}

/// Names that YAML takes for something else stay names.
#[test]
fn names_stay_text() {
    let text = super::ran(&[
        "template",
        "123",
        "charts/torpor",
        "--namespace",
        "404",
        "--set-string",
        "gateway.tls.secretName=1e3",
    ]);
    let objects = objects(&text.expect("it renders"));
    let gateway = object(&objects, "Deployment", "torpor-gateway");
    assert_eq!(gateway["metadata"]["namespace"], "404");
    assert_eq!(gateway["metadata"]["labels"]["app.kubernetes.io/instance"], "123");
    assert_eq!(gateway["spec"]["template"]["spec"]["volumes"][0]["secret"]["secretName"], "1e3");
}
