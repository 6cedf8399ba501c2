//! What tests need, and labs that the tests of a module share.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result};
use integration::lab::options::LabOptions;
use integration::lab::run::{self, output};
use integration::lab::{Lab, binaries, wait};
use libtest_mimic::{Completion, Failed, Trial};

/// What takes moments by itself, on a machine that is busy with all tests at once. Nobody waits so
/// long but for something that does not come.
pub const SOON: Duration = Duration::from_secs(120);

/// Shell: a job's script begins with this, so that others know that it is no longer about to be
/// executed. Shells have [`BEGUN`] for it.
pub const BEGIN: &str = ": >/tmp/begun.$$;";
/// Shell: `begun PID` waits for that.
pub const BEGUN: &str = "begun() { until [ -e /tmp/begun.$1 ]; do \
    kill -0 $1 || exit 1; sleep 0.05; done; rm /tmp/begun.$1; };";

/// Waits until a shell test in a node succeeds.
pub fn until(lab: &Lab, node: &str, test: &str) -> Result<()> {
    let mut said = String::new();
    let succeeds = || {
        let result = lab.run(node, test);
        said = format!("{result:?}");
        result.ok()?.status.success().then_some(())
    };
    let succeeded = wait::until(SOON, succeeds);
    succeeded.with_context(|| format!("not on {node}: {test}: {said}{}", last_words(lab, node)))
}

/// The end of what a node's daemon said.
fn last_words(lab: &Lab, node: &str) -> String {
    let log = lab.sh(node, "tail -n 20 /var/log/omfs.log");
    log.map_or_else(|_| String::new(), |text| format!("\n{node} says:\n{text}"))
}

/// A test's body.
pub type Body = fn(&Lab) -> Result<()>;

/// What a test cannot do without.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// A program on this machine, and so in every node.
    Tool(&'static str),
    /// A published test suite, which `integration/suites/install` installs.
    Suite(&'static str),
}

/// Why something cannot be had on this machine.
fn lack(needs: &[Need]) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("needs root".into());
    }
    if !Path::new("/dev/fuse").exists() {
        return Some("needs /dev/fuse".into());
    }
    needs.iter().find_map(|need| match need {
        Need::Tool(name) => (!has_tool(name)).then(|| format!("needs {name}")),
        Need::Suite(name) => suite(name)
            .is_none()
            .then(|| format!("needs {name}: run integration/suites/install")),
    })
}

/// Whether nodes find a program: they look in the system's directories only.
fn has_tool(name: &str) -> bool {
    let dirs = ["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"];
    dirs.iter().any(|dir| Path::new(dir).join(name).exists())
}

/// Where an installed suite is.
pub fn suite(name: &str) -> Option<PathBuf> {
    let ours = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/suites");
    let root = std::env::var_os("OMFS_SUITES").map_or(ours, PathBuf::from);
    let path = root.join("bin").join(name);
    path.is_file().then_some(path)
}

/// A lab that comes up with the first test that wants it and ends with the last one.
struct SharedLab {
    options: fn() -> Result<LabOptions>,
    lab: Mutex<Option<Arc<Lab>>>,
    /// Held by the test that runs, where the module's tests would disturb each other.
    turn: Option<Mutex<()>>,
}

impl SharedLab {
    fn get(&self) -> Result<Arc<Lab>> {
        let mut slot = self.lab.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(lab) = &*slot {
            return Ok(Arc::clone(lab));
        }
        let lab = Arc::new(Lab::up(&(self.options)()?)?);
        *slot = Some(Arc::clone(&lab));
        Ok(lab)
    }
}

/// Options of a lab whose nodes run omfs.
pub fn with_omfs(nodes: usize) -> Result<LabOptions> {
    static OMFS: OnceLock<Result<std::path::PathBuf, String>> = OnceLock::new();
    let built = OMFS.get_or_init(|| binaries::omfs().map_err(|error| format!("{error:#}")));
    let omfs = built.as_ref().map_err(|error| anyhow::anyhow!("{error}"))?;
    let mut options = LabOptions::new(nodes);
    options.omfs_binary = Some(omfs.clone());
    Ok(options)
}

/// Runs a shell script in a node as one of its users.
pub fn user_sh(lab: &Lab, user: &str, node: &str, script: &str) -> Result<Output> {
    let mut command = lab.command_with(&["--user", user], node, ["sh", "-c", script])?;
    output(&mut command, run::TIMEOUT)
}

/// The tests of one module.
pub struct Module {
    name: &'static str,
    needs: &'static [Need],
    shared: Arc<SharedLab>,
    trials: Vec<Trial>,
}

impl Module {
    /// Tests that share a lab with these options and all need the same things.
    pub fn new(
        name: &'static str,
        needs: &'static [Need],
        options: fn() -> Result<LabOptions>,
    ) -> Self {
        let shared = Arc::new(SharedLab {
            options,
            lab: Mutex::new(None),
            turn: None,
        });
        Self {
            name,
            needs,
            shared,
            trials: Vec::new(),
        }
    }

    /// Tests of which only one runs at a time.
    pub fn one_at_a_time(
        name: &'static str,
        needs: &'static [Need],
        options: fn() -> Result<LabOptions>,
    ) -> Self {
        let shared = SharedLab {
            options,
            lab: Mutex::new(None),
            turn: Some(Mutex::new(())),
        };
        Self {
            name,
            needs,
            shared: Arc::new(shared),
            trials: Vec::new(),
        }
    }

    /// Adds a test in the module's lab.
    pub fn test(&mut self, name: &str, needs: &'static [Need], body: Body) -> &mut Self {
        self.test_with(name, needs, body)
    }

    /// Adds a test with a body that carries something.
    pub fn test_with(
        &mut self,
        name: &str,
        needs: &'static [Need],
        body: impl FnOnce(&Lab) -> Result<()> + Send + 'static,
    ) -> &mut Self {
        let shared = Arc::clone(&self.shared);
        self.add(name, needs, move || {
            let lab = shared.get()?;
            let _turn = shared.turn.as_ref().map(|turn| turn.lock());
            body(&lab)
        })
    }

    /// Adds a test that makes its own labs.
    pub fn alone(
        &mut self,
        name: &str,
        needs: &'static [Need],
        body: fn() -> Result<()>,
    ) -> &mut Self {
        self.add(name, needs, body)
    }

    fn add(
        &mut self,
        name: &str,
        needs: &'static [Need],
        body: impl FnOnce() -> Result<()> + Send + 'static,
    ) -> &mut Self {
        let common = self.needs;
        let run = move || match lack(common).or_else(|| lack(needs)) {
            Some(reason) => Ok(Completion::ignored_with(reason)),
            None => match body() {
                Ok(()) => Ok(Completion::Completed),
                Err(error) => Err(Failed::from(format!("{error:#}"))),
            },
        };
        let name = format!("{}::{name}", self.name);
        self.trials.push(Trial::ignorable_test(name, run));
        self
    }

    /// All of them.
    pub fn finish(self) -> Vec<Trial> {
        self.trials
    }
}
