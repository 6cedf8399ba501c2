//! Paths that mean another file on another node, made to mean the same one everywhere.

use super::{FileKind, ProcessImage};

/// The node on which the path is used (docs/posix.md).
const HERE: &[u8] = b"/mfs/here";

/// Home's own tree.
const HOME: &[u8] = b"/mfs/home";

/// Makes paths that lead to home through `/mfs` what they are at home: files of home are recognised
/// by home's numbers, which they do not have under `/mfs`.
pub fn name_home(image: &mut ProcessImage, home: &str) {
    let by_name = [b"/mfs/", home.as_bytes()].concat();
    change_paths(image, |path| {
        let rest = path
            .strip_prefix(HOME)
            .filter(|rest| ends_name(rest))
            .or_else(|| path.strip_prefix(&by_name[..]))
            .filter(|rest| ends_name(rest))?;
        Some(if rest.is_empty() { b"/" } else { rest }.to_vec())
    });
}

/// Puts the name of the node where the process was captured in the place of "here" in all paths.
pub fn name_here(image: &mut ProcessImage, node: &str) {
    change_paths(image, |path| {
        let rest = path.strip_prefix(HERE).filter(|rest| ends_name(rest))?;
        Some([b"/mfs/", node.as_bytes(), rest].concat())
    });
}

/// Regular files whose name the kernel has lost, so that it tells the root of their file system
/// instead, are to be found by their numbers, like those that have none any more.
pub fn mark_nameless(image: &mut ProcessImage) {
    for file in &mut image.files {
        let nameless = file.kind() == FileKind::Regular && file.path == b"/";
        if let Some(id) = file.id.as_mut().filter(|_| nameless) {
            id.unlinked = true;
        }
    }
}

fn ends_name(rest: &[u8]) -> bool {
    rest.is_empty() || rest.starts_with(b"/")
}

fn change_paths(image: &mut ProcessImage, change: impl Fn(&[u8]) -> Option<Vec<u8>>) {
    let files = image.files.iter_mut().map(|file| &mut file.path);
    let mappings = image.vmas.iter_mut().map(|vma| &mut vma.path);
    let own = [&mut image.cwd, &mut image.exe];
    for path in files.chain(mappings).chain(own) {
        if let Some(changed) = change(path) {
            *path = changed;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::{FileIdImage, FileImage, VmaImage};

    #[test]
    fn here_becomes_the_node_that_it_was() {
        let path = |path: &str| path.as_bytes().to_vec();
        let mut image = ProcessImage {
            cwd: path("/mfs/here"),
            exe: path("/mfs/here/bin/x"),
            ..ProcessImage::default()
        };
        for file in ["/mfs/hereafter/x", "/mfs/home/x", "/tmp/mfs/here/x"] {
            let path = path(file);
            image.files.push(FileImage {
                path,
                ..FileImage::default()
            });
        }
        image.vmas.push(VmaImage {
            path: path("/mfs/here/lib/y"),
            ..VmaImage::default()
        });
        let before = image.files.clone();
        name_here(&mut image, "n2");
        assert_eq!(image.cwd, b"/mfs/n2");
        assert_eq!(image.exe, b"/mfs/n2/bin/x");
        assert_eq!(image.vmas[0].path, b"/mfs/n2/lib/y");
        assert_eq!(image.files, before);
    }

    #[test]
    fn only_regular_files_at_the_root_are_nameless() {
        let mut image = ProcessImage::default();
        for (kind, path) in [
            (FileKind::Regular, "/"),
            (FileKind::Directory, "/"),
            (FileKind::Regular, "/x"),
        ] {
            image.files.push(FileImage {
                kind: kind.into(),
                path: path.as_bytes().to_vec(),
                id: Some(FileIdImage::default()),
                ..FileImage::default()
            });
        }
        mark_nameless(&mut image);
        let unlinked = |file: &FileImage| file.id.is_some_and(|id| id.unlinked);
        let marked: Vec<bool> = image.files.iter().map(unlinked).collect();
        assert_eq!(marked, [true, false, false]);
    }

    #[test]
    fn home_through_mfs_becomes_home() {
        let path = |path: &str| path.as_bytes().to_vec();
        for (away, home) in [
            ("/mfs/home/etc/x", "/etc/x"),
            ("/mfs/n1/etc/x", "/etc/x"),
            ("/mfs/home", "/"),
            ("/mfs/n12/etc/x", "/mfs/n12/etc/x"),
            ("/mfs/homes/x", "/mfs/homes/x"),
            ("/etc/x", "/etc/x"),
        ] {
            let mut image = ProcessImage {
                cwd: path(away),
                ..ProcessImage::default()
            };
            name_home(&mut image, "n1");
            assert_eq!(image.cwd, path(home), "{away}");
        }
    }
}
