//! A worker: listeners and connections of one thread.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::task::{AbortHandle, spawn_local};

use super::context::{Context, Shared};
use super::serve;
use crate::accept::{Admission, Intake, WorkerListeners};
use crate::capture::sockets::NetNs;

/// What the control runtime tells a worker.
#[derive(Debug)]
pub enum Command {
    /// Accept connections in one more namespace.
    Listen(WorkerListeners),
    /// A namespace (by cookie) is gone: close its listeners. Connections go
    /// on.
    Forget(u64),
    /// Close all listeners. Connections go on.
    StopAccepting,
}

/// Serves until the sender of commands is dropped. Must run in a `LocalSet`;
/// connections are tasks of that set, and end when it is dropped, each with
/// its record.
pub async fn run_worker(shared: Arc<Shared>, mut commands: UnboundedReceiver<Command>) {
    let intake = Intake {
        origins: shared.origins.clone(),
        admission: Admission::new(shared.settings.max_connections),
        stats: shared.intake.clone(),
    };
    let context = Rc::new(Context::new(shared));
    let account = context.account.clone();
    let flushing = spawn_local(async move { account.keep_flushing().await });
    let mut accepting: HashMap<u64, Vec<AbortHandle>> = HashMap::new();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Listen(listeners) => {
                let cookie = listeners.netns.cookie;
                let tasks = listen(listeners, &intake, &context);
                stop(accepting.insert(cookie, tasks));
            }
            Command::Forget(cookie) => stop(accepting.remove(&cookie)),
            Command::StopAccepting => {
                context.drain_http();
                for (_, tasks) in accepting.drain() {
                    stop(Some(tasks));
                }
            }
        }
    }
    stop(accepting.into_values().reduce(|mut all, some| {
        all.extend(some);
        all
    }));
    flushing.abort();
}

fn stop(tasks: Option<Vec<AbortHandle>>) {
    for task in tasks.into_iter().flatten() {
        task.abort();
    }
}

fn listen(listeners: WorkerListeners, intake: &Intake, context: &Rc<Context>) -> Vec<AbortHandle> {
    let WorkerListeners { netns, v4, v6 } = listeners;
    [Some(v4), v6]
        .into_iter()
        .flatten()
        .filter_map(|listener| match TcpListener::from_std(listener) {
            Ok(listener) => Some(accept_on(listener, &netns, intake, context)),
            Err(error) => {
                tracing::error!(%error, netns = netns.cookie, "cannot accept on a listener");
                None
            }
        })
        .collect()
}

fn accept_on(
    listener: TcpListener,
    netns: &NetNs,
    intake: &Intake,
    context: &Rc<Context>,
) -> AbortHandle {
    let context = context.clone();
    let accepting = intake
        .clone()
        .run(listener, netns.clone(), move |accepted| {
            spawn_local(serve(context.clone(), accepted));
        });
    spawn_local(accepting).abort_handle()
}
