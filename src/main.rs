fn main() {
    for crd in torpor::api::crds::all() { println!("---\n{}", serde_yaml::to_string(&crd).unwrap()); }
}
