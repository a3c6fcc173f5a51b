//! What Helm prints at the end of an installation.

use super::{helm, ran};

fn notes(values: &[&str]) -> String {
    let mut arguments = vec!["install", "torpor", "charts/torpor", "--namespace", "torpor-system", "--dry-run=client"];
    arguments.extend(values.iter().flat_map(|value| ["--set-json", value]));
    let text = ran(&arguments).expect("the chart renders");
    text.split_once("\nNOTES:\n").expect("notes").1.to_owned()
}

#[test]
fn notes_name_the_next_command_and_what_is_missing() {
    let bare = notes(&[]);
    for part in [
        "kubectl -n torpor-system rollout status deployment/torpor-operator",
        "helm test torpor -n torpor-system",
        "Missing: there is no WorkerPool",
        "kubectl apply -f examples/pools.yaml",
        "The waiting page is off",
        "Kubernetes Events only",
    ] {
        assert!(bare.contains(part), "{part:?} is not in: {bare}");
    }
    let links = r#"gateway.links.secretName="links""#;
    let webhook = r#"hibernator.webhook.secretName="hook""#;
    let pool = |tiers: &str, class: &str| {
        format!(r#"workerPools=[{{"name":"all","tiers":{tiers},"priority":{{"class":"{class}","value":1}}}}]"#)
    };
    let some = notes(&[&pool(r#"["free","basic"]"#, "torpor-low"), links, webhook]);
    assert!(some.contains("kubectl get workerpools"), "{some}");
    for part in
        ["serves tier pro", "serves tier premium", "PriorityClass torpor-medium, which pods of tier basic ask for"]
    {
        assert!(some.contains(part), "{part:?} is not in: {some}");
    }
    assert_eq!(some.matches("Missing").count(), 3, "{some}");
    let examples =
        helm(&["install", "torpor", "charts/torpor", "--dry-run=client", "--values", "examples/eks/values.yaml"]);
    let examples = String::from_utf8_lossy(&examples.stdout).into_owned();
    for part in ["Missing", "The waiting page is off", "no TLS"] {
        assert!(!examples.contains(part), "{part:?} is in: {examples}");
    }
    let open = notes(&["gateway.ingress.enabled=true"]);
    assert!(open.contains("has no TLS of its own"), "{open}");
}
