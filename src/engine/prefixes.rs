//! System prompts that the configuration names are told to each engine before it is ready: as the tokens with which every
//! request with that system message begins, and the file of their image. Images of prompts that are not configured any more are
//! removed.

use std::{
    collections::HashSet,
    fs::{self, DirBuilder},
    io,
    os::unix::fs::DirBuilderExt as _,
    path::{Path, PathBuf},
    sync::Arc,
};

use super::EngineHandle;
use crate::{
    chat::Prompter,
    config::SystemPrompt,
    request::{Role, Turn},
    wire::engine::Prefix,
};

/// Ending of an image, and of one that is being written.
const ENDINGS: [&str; 2] = ["kv", "tmp"];

/// Tells the engine that lives, beside whatever else it is told.
pub(super) fn tell(prompts: &[SystemPrompt], state: Option<&Path>, prompter: &Arc<Prompter>, engine: &EngineHandle) {
    let (prompts, prompter, engine) = (prompts.to_vec(), prompter.clone(), engine.clone());
    let state = state.map(Path::to_owned);
    if prompts.is_empty() && state.is_none() {
        return;
    }
    tokio::spawn(async move {
        let named = prompts.clone();
        let folder = tokio::task::spawn_blocking(move || folder(state.as_deref(), &named)).await.ok().flatten();
        for prompt in prompts {
            let name = prompt.name.clone();
            match prefix(prompt, folder.as_deref(), &prompter, &engine).await {
                Ok(prefix) => drop(engine.prefix(prefix).await),
                Err(error) => log::warn!(target: "temperd::engine", "system prompt {name} is not kept: {error}"),
            }
        }
    });
}

/// The folder of images, without those that nobody will ask for. It is only made where there are prompts.
fn folder(state: Option<&Path>, prompts: &[SystemPrompt]) -> Option<PathBuf> {
    let folder = state?.join("prefixes");
    if let Err(error) = tidy(&folder, prompts)
        && error.kind() != io::ErrorKind::NotFound
    {
        log::warn!(target: "temperd::engine", "old images in {} stay: {error}", folder.display());
    }
    if prompts.is_empty() {
        return None;
    }
    let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
    made.inspect_err(|error| {
        log::warn!(target: "temperd::engine", "system prompts have no images: {}: {error}", folder.display());
    })
    .ok()?;
    Some(folder)
}

/// Removes images of other names, and what was not written to its end.
fn tidy(folder: &Path, prompts: &[SystemPrompt]) -> io::Result<()> {
    let names: HashSet<&str> = prompts.iter().map(|prompt| prompt.name.as_str()).collect();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        let ending = path.extension().and_then(|ending| ending.to_str());
        let name = path.file_stem().and_then(|name| name.to_str());
        let ours = ending.is_some_and(|ending| ENDINGS.contains(&ending));
        let wanted = ending == Some(ENDINGS[0]) && name.is_some_and(|name| names.contains(name));
        if ours && !wanted {
            fs::remove_file(&path)?;
            log::info!(target: "temperd::engine", "removed the old image {}", path.display());
        }
    }
    Ok(())
}

/// What requests with this system prompt have in common.
async fn prefix(
    prompt: SystemPrompt,
    folder: Option<&Path>,
    prompter: &Prompter,
    engine: &EngineHandle,
) -> Result<Prefix, String> {
    let SystemPrompt { name, text } = prompt;
    let system = Turn { role: Role::System, content: text };
    // Any message will do that begins like hardly any other.
    let user = Turn { role: Role::User, content: "a".into() };
    let turns = [system, user];
    let segments = prompter.chat(&turns).map_err(|error| error.to_string())?;
    let public = prompter.public(&turns).ok_or("the chat template does not render it")?;
    let (mut tokens, common) = engine.tokenise(segments, public).await.map_err(|error| error.to_string())?;
    tokens.truncate(common as usize);
    if tokens.is_empty() {
        return Err("the chat template puts it behind what clients write".into());
    }
    let path = folder.map(|folder| folder.join(&name).with_extension(ENDINGS[0]).to_string_lossy().into_owned());
    Ok(Prefix { name, tokens, path: path.unwrap_or_default() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(name: &str) -> SystemPrompt {
        SystemPrompt { name: name.into(), text: "Be kind.".into() }
    }

    #[test]
    fn images_of_other_names_go_and_nothing_else_does() {
        let state = tempfile::tempdir().expect("a folder");
        assert_eq!(folder(None, &[prompt("a")]), None);
        assert_eq!(folder(Some(state.path()), &[]), None);
        let folder_of = |prompts: &[SystemPrompt]| folder(Some(state.path()), prompts);
        let images = folder_of(&[prompt("a")]).expect("made");
        for name in ["a.kv", "b.kv", "a.tmp", "notes.txt"] {
            fs::write(images.join(name), b"x").expect("written");
        }
        let left = || {
            let mut names: Vec<_> =
                fs::read_dir(&images).expect("there").map(|entry| entry.expect("one").file_name()).collect();
            names.sort();
            names
        };
        assert_eq!(folder_of(&[prompt("a")]), Some(images.clone()));
        assert_eq!(left(), ["a.kv", "notes.txt"]);
        assert_eq!(folder_of(&[]), None);
        assert_eq!(left(), ["notes.txt"]);
    }
}
