//! What has to be the same for the state of one engine to mean anything to another.

use std::{
    fs::{self, File},
    hash::{DefaultHasher, Hash as _, Hasher as _},
    io::Read as _,
    path::Path,
};

use temperd::{
    engine::frames,
    wire::engine::{Handed, Load},
};

/// Bytes of a model's file that are looked at: its header differs from that of most others here.
const HEAD: u64 = 1 << 20;

/// Of an engine with its model. What is not known is like nothing else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Of the files.
    model: Option<u64>,
    kv_type_k: String,
    kv_type_v: String,
    flash_attention: String,
    /// Sequence ids but for the graveyard.
    pub slots: u32,
    batch_invariant: bool,
}

impl Identity {
    /// Of what is loaded.
    pub fn of(load: &Load, slots: i32) -> Self {
        let mut hasher = DefaultHasher::new();
        let files = [&load.model].into_iter().chain(load.adapters.iter().map(|adapter| &adapter.path));
        let looked = files.map(|path| look(Path::new(path), &mut hasher)).collect::<std::io::Result<Vec<()>>>();
        Self {
            model: looked.ok().map(|_| hasher.finish()),
            kv_type_k: load.kv_type_k.clone(),
            kv_type_v: load.kv_type_v.clone(),
            flash_attention: load.flash_attention.clone(),
            slots: u32::try_from(slots).unwrap_or_default(),
            batch_invariant: load.batch_invariant,
        }
    }

    /// Of images on the disk: of the model as it is and of this very program, since builds under way have one version.
    pub fn of_images(load: &Load) -> Self {
        let identity = Self::of(&Load { adapters: Vec::new(), ..load.clone() }, 1);
        let about = fs::metadata("/proc/self/exe").and_then(|about| Ok((about.len(), about.modified()?)));
        let model = identity.model.zip(about.ok()).map(|known| {
            let mut hasher = DefaultHasher::new();
            known.hash(&mut hasher);
            hasher.finish()
        });
        Self { model, ..identity }
    }

    /// A table without sequences.
    pub fn table(&self) -> Handed {
        Handed {
            build: frames::BUILD.to_owned(),
            model: self.model.unwrap_or_default(),
            kv_type_k: self.kv_type_k.clone(),
            kv_type_v: self.kv_type_v.clone(),
            flash_attention: self.flash_attention.clone(),
            slots: self.slots,
            batch_invariant: self.batch_invariant,
            sequences: Vec::new(),
        }
    }

    /// Whether a table is of such an engine.
    ///
    /// # Errors
    /// What is another.
    pub fn fits(&self, handed: &Handed) -> Result<(), String> {
        let own = self.table();
        let other = |what: &str| Err(format!("it is of {what}"));
        match () {
            () if handed.build != own.build => other("another build"),
            () if self.model != Some(handed.model) => other("another model"),
            () if handed.kv_type_k != own.kv_type_k || handed.kv_type_v != own.kv_type_v => {
                other("other types of K and V")
            }
            () if handed.flash_attention != own.flash_attention => other("another attention"),
            () if handed.slots != own.slots => other("another number of sequences"),
            () if handed.batch_invariant != own.batch_invariant => other("another order of cells"),
            () => Ok(()),
        }
    }
}

fn look(path: &Path, hasher: &mut DefaultHasher) -> std::io::Result<()> {
    let about = fs::metadata(path)?;
    (about.len(), about.modified()?).hash(hasher);
    let mut head = Vec::new();
    File::open(path)?.take(HEAD).read_to_end(&mut head)?;
    head.hash(hasher);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_the_same_for_the_same_and_names_what_is_not() {
        let folder = tempfile::tempdir().expect("a folder");
        let file = folder.path().join("model.gguf");
        fs::write(&file, b"GGUF and so on").expect("written");
        let load = Load {
            model: file.to_str().expect("UTF-8").to_owned(),
            kv_type_k: "f16".to_owned(),
            kv_type_v: "f16".to_owned(),
            ..Load::default()
        };
        let identity = Identity::of(&load, 8);
        assert_eq!(Identity::of(&load, 8).fits(&identity.table()), Ok(()));
        let refused = |load: &Load, slots| Identity::of(load, slots).fits(&identity.table()).expect_err("another");
        assert!(refused(&Load { kv_type_v: "q8_0".to_owned(), ..load.clone() }, 8).contains("types of K and V"));
        assert!(refused(&Load { batch_invariant: true, ..load.clone() }, 8).contains("order"));
        assert!(refused(&load, 9).contains("number of sequences"));
        fs::write(&file, b"GGUF and so on.").expect("written");
        assert!(refused(&load, 8).contains("another model"));
        fs::remove_file(&file).expect("removed");
        let unknown = Identity::of(&load, 8);
        assert!(unknown.fits(&unknown.table()).is_err());
    }
}
