//! Where the files of runs are that can be carried on with.

use std::path::PathBuf;

use orchestra::JobId;
use orchestra_pipelines::RunState;

use crate::exit::Failure;

/// The file of a run, which lives as long as the run can be carried on with.
pub(crate) struct StateFile {
    path: PathBuf,
    pub(crate) state: RunState,
}

impl StateFile {
    /// Begins the file of a run, or opens that of one that is carried on with. Without a place for it, a run is begun all the
    /// same: the engine knows most of it.
    ///
    /// # Errors
    /// If there is no such run to carry on with.
    pub(crate) fn of(run: &JobId, resume: bool, digest: &str) -> Result<Option<Self>, Failure> {
        let Some(folder) = folder() else {
            let none = "there is no folder for the state of runs: neither XDG_STATE_HOME nor HOME is set";
            return if resume {
                Err(Failure::bad_input(none))
            } else {
                Ok(None)
            };
        };
        let path = folder.join(format!("{run}.sqlite"));
        // A run of this id that was broken off is carried on with also where nobody says that it is one.
        let open = || RunState::open(&path, run, digest);
        if resume {
            let state = open()?;
            return Ok(Some(Self { path, state }));
        }
        let begun = std::fs::create_dir_all(&folder)
            .map_err(|error| error.to_string())
            .and_then(|()| {
                open()
                    .or_else(|_| RunState::create(&path, run, digest))
                    .map_err(|error| error.to_string())
            });
        Ok(match begun {
            Ok(state) => Some(Self { path, state }),
            Err(error) => {
                tracing::warn!(%error, "this run can't be carried on with by --resume");
                None
            }
        })
    }

    /// The run has ended: nothing of it is there to carry on with.
    pub(crate) fn remove(self) {
        drop(self.state);
        // What stays is replaced by the next run of this id.
        std::fs::remove_file(self.path).ok();
    }
}

/// `orchestra/runs` of the user's state, by the [XDG base directories](https://specifications.freedesktop.org/basedir-spec/).
fn folder() -> Option<PathBuf> {
    let set = |name: &str| {
        std::env::var_os(name)
            .filter(|value| !value.is_empty())
            .map(PathBuf::from)
    };
    let state = set("XDG_STATE_HOME").or_else(|| Some(set("HOME")?.join(".local/state")))?;
    Some(state.join("orchestra/runs"))
}
