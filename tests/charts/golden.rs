//! Every set of values gives what is recorded; whoever changes a template reads what it changes.

use super::{CHARTS, RENDERS, generated, ran, render};

#[test]
fn renders_are_as_recorded() {
    for (name, values) in RENDERS {
        let now = render("torpor", values).unwrap_or_else(|error| panic!("{name}: {error}"));
        // Helm puts a blank line between some objects and none between others.
        let now: String = now.lines().map(|line| format!("{line}\n")).collect();
        assert!(!now.lines().any(|line| line.ends_with(' ')), "{name}: a line ends with a blank");
        generated(&format!("tests/charts/golden/{name}.yaml"), &now);
    }
}

#[test]
fn lint_finds_nothing() {
    for chart in CHARTS {
        let chart = format!("charts/{chart}");
        ran(&["lint", "--strict", "--quiet", &chart]).unwrap_or_else(|error| panic!("{chart}: {error}"));
    }
    for (name, values) in RENDERS {
        let mut arguments = vec!["lint", "--strict", "--quiet", "charts/torpor"];
        arguments.extend(values.iter().flat_map(|file| ["--values", file]));
        ran(&arguments).unwrap_or_else(|error| panic!("{name}: {error}"));
    }
}

#[test]
fn packages_are_made() {
    for chart in CHARTS {
        let (path, folder) = (format!("charts/{chart}"), env!("CARGO_TARGET_TMPDIR"));
        ran(&["package", "--destination", folder, &path]).unwrap_or_else(|error| panic!("{chart}: {error}"));
        let package = format!("{folder}/{chart}-{}.tgz", env!("CARGO_PKG_VERSION"));
        let shown =
            ran(&["template", "torpor", &package, "--namespace", "torpor-system"]).expect("the package renders");
        assert!(shown.contains("torpor.dev") || shown.contains("torpor-operator"), "{chart} is empty");
    }
}

#[test]
fn the_oldest_kubernetes_is_named() {
    let template = |version| ran(&["template", "torpor", "charts/torpor", "--kube-version", version]);
    let refused = template("1.32.9").expect_err("an old Kubernetes");
    assert!(refused.contains("requires kubeVersion: >=1.33.0-0"), "{refused}");
    for version in ["1.33.0", "v1.33.1-eks-7f3c2a1", "v1.34.0-gke.1000", "1.37.2"] {
        template(version).unwrap_or_else(|error| panic!("{version}: {error}"));
    }
}
