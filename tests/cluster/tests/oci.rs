//! The writer of images against the reader of the library it is made of, and its bytes against themselves.

use std::{
    collections::BTreeMap,
    fs,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
};

use torpor_cluster::oci::{self, Archive, Config};

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("torpor-oci-{}-{name}", std::process::id()));
        fs::create_dir_all(&path).expect("folder");
        Self(path)
    }

    fn rootfs(&self, name: &str) -> PathBuf {
        let root = self.0.join(name);
        fs::create_dir_all(root.join("etc")).expect("folder");
        fs::write(root.join("etc/motd"), "hello\n").expect("file");
        root
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn image(layer: &Path, out: &Path) -> Archive {
    Archive {
        name: "registry.example/team/app:1.0".into(),
        layers: vec![layer.into()],
        config: Config {
            user: "65532:65532".into(),
            entrypoint: vec!["/app".into()],
            labels: BTreeMap::from([("org.opencontainers.image.title".into(), "App".into())]),
            ..Config::default()
        },
        created: 1_700_000_000,
        out: out.into(),
        ..Archive::default()
    }
}

fn unpack(archive: &Path, into: &Path) {
    fs::create_dir_all(into).expect("folder");
    let done = Command::new("tar").arg("-xf").arg(archive).arg("-C").arg(into).status().expect("tar");
    assert!(done.success());
}

#[test]
fn equal_folders_give_equal_archives_which_hold_what_they_claim() {
    let folder = Folder::new("equal");
    let mut archives = Vec::new();
    for gzip in [false, true] {
        for name in ["one", "two"] {
            let tar = folder.0.join(format!("{name}.tar"));
            let root = folder.rootfs(name);
            // Neither the umask nor the clock of who packs may show.
            let mode = if name == "one" { 0o644 } else { 0o666 };
            fs::set_permissions(root.join("etc/motd"), fs::Permissions::from_mode(mode)).expect("mode");
            oci::layer(&root, &tar, 1_700_000_000).expect("layer");
            let same = folder.0.join("layer.tar");
            fs::rename(tar, &same).expect("rename");
            let out = folder.0.join(format!("{name}-{gzip}.oci.tar"));
            let digest = oci::write(&Archive { gzip, ..image(&same, &out) }).expect("archive");
            let content = folder.0.join(format!("{name}-{gzip}"));
            unpack(&out, &content);
            assert_eq!(oci::validate(&content).expect("valid"), digest);
            archives.push(fs::read(out).expect("archive"));
        }
    }
    assert!(archives[0] == archives[1], "plain archives differ");
    assert!(archives[2] == archives[3], "compressed archives differ");
    assert!(archives[0] != archives[2]);

    let index: serde_json::Value =
        serde_json::from_slice(&fs::read(folder.0.join("one-false/index.json")).expect("index")).expect("JSON");
    let annotations = &index["manifests"][0]["annotations"];
    assert_eq!(annotations["io.containerd.image.name"], "registry.example/team/app:1.0");
    assert_eq!(annotations["org.opencontainers.image.ref.name"], "1.0");
}

#[test]
fn a_changed_blob_is_found() {
    let folder = Folder::new("changed");
    let (tar, out, content) = (folder.0.join("layer.tar"), folder.0.join("app.oci.tar"), folder.0.join("content"));
    oci::layer(&folder.rootfs("root"), &tar, 0).expect("layer");
    oci::write(&image(&tar, &out)).expect("archive");
    unpack(&out, &content);
    let largest = fs::read_dir(content.join("blobs/sha256"))
        .expect("blobs")
        .map(|entry| entry.expect("blob").path())
        .max_by_key(|path| fs::metadata(path).expect("blob").len())
        .expect("a blob");
    let mut bytes = fs::read(&largest).expect("blob");
    let text = bytes.windows(5).position(|window| window == b"hello").expect("the file's text");
    bytes[text] = b'j';
    fs::write(largest, bytes).expect("blob");
    let error = oci::validate(&content).expect_err("a blob was changed");
    assert!(format!("{error:#}").contains("sha256"), "{error:#}");
}

#[test]
fn what_is_wrong_is_said_and_nothing_is_written() {
    let folder = Folder::new("wrong");
    let (tar, out) = (folder.0.join("layer.tar"), folder.0.join("app.oci.tar"));
    oci::layer(&folder.rootfs("root"), &tar, 0).expect("layer");
    let compressed = folder.0.join("layer.tar.gz");
    let gzip = Command::new("tar").arg("-czf").arg(&compressed).arg("-C").arg(&folder.0).arg("root").status();
    assert!(gzip.expect("tar").success());
    let cases = [
        (Archive { name: "no tag at all".into(), ..image(&tar, &out) }, "is not a name such as"),
        (Archive { name: "app".into(), ..image(&tar, &out) }, "is not a name such as"),
        (image(&compressed, &out), "compressed"),
        (image(&folder.0.join("missing.tar"), &out), "no such file"),
    ];
    for (archive, message) in cases {
        let error = format!("{:#}", oci::write(&archive).expect_err("it is wrong"));
        assert!(error.contains(message), "{error}");
        assert!(!out.exists());
    }
}
