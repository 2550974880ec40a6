//! A worker: listeners and connections of one thread.

use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
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
    /// Nobody is left in a namespace (by cookie): close its listeners and idle
    /// connections to services. Connections of applications go on.
    Forget(u64),
    /// No application has its end of a connection in a forgotten namespace any
    /// more: end those that are open.
    Cut(u64),
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
    let mut accepting: HashMap<u64, Served> = HashMap::new();
    // Connections of namespaces that were forgotten.
    let mut leaving: HashMap<u64, Vec<Cut>> = HashMap::new();
    while let Some(command) = commands.recv().await {
        match command {
            Command::Listen(listeners) => {
                let cookie = listeners.netns.cookie;
                let served = listen(listeners, &intake, &context);
                if let Some(before) = accepting.insert(cookie, served) {
                    leaving.entry(cookie).or_default().push(before.stop());
                }
            }
            Command::Forget(cookie) => {
                if let Some(served) = accepting.remove(&cookie) {
                    leaving.entry(cookie).or_default().push(served.stop());
                }
                context.http.pool.leave_namespace(cookie);
            }
            Command::Cut(cookie) => {
                for cut in leaving.remove(&cookie).into_iter().flatten() {
                    cut.send_replace(true);
                }
                context.http.pool.leave_namespace(cookie);
            }
            Command::StopAccepting => {
                context.drain_http();
                for (cookie, served) in accepting.drain() {
                    leaving.entry(cookie).or_default().push(served.stop());
                }
            }
        }
    }
    for (_, served) in accepting {
        served.stop();
    }
    flushing.abort();
}

/// Ends the connections of a namespace when it turns true.
type Cut = watch::Sender<bool>;

/// What is open in one namespace.
struct Served {
    accepting: Vec<AbortHandle>,
    cut: Cut,
}

impl Served {
    /// Accepts nothing more; what was accepted goes on until the cut.
    fn stop(self) -> Cut {
        for task in &self.accepting {
            task.abort();
        }
        self.cut
    }
}

fn listen(listeners: WorkerListeners, intake: &Intake, context: &Rc<Context>) -> Served {
    let WorkerListeners { netns, v4, v6 } = listeners;
    let (cut, end) = watch::channel(false);
    let accepting = [Some(v4), v6]
        .into_iter()
        .flatten()
        .filter_map(|listener| match TcpListener::from_std(listener) {
            Ok(listener) => Some(accept_on(listener, &netns, &end, intake, context)),
            Err(error) => {
                tracing::error!(%error, netns = netns.cookie, "cannot accept on a listener");
                None
            }
        })
        .collect();
    Served { accepting, cut }
}

fn accept_on(
    listener: TcpListener,
    netns: &NetNs,
    end: &watch::Receiver<bool>,
    intake: &Intake,
    context: &Rc<Context>,
) -> AbortHandle {
    let context = context.clone();
    let end = (!netns.is_home()).then(|| end.clone());
    let accepting = intake
        .clone()
        .run(listener, netns.clone(), move |accepted| {
            let serving = serve(context.clone(), accepted);
            // The agent's own namespace is never cut.
            match end.clone() {
                Some(end) => drop(spawn_local(until_cut(end, serving))),
                None => drop(spawn_local(serving)),
            }
        });
    spawn_local(accepting).abort_handle()
}

/// Carries a connection until it ends, or its namespace is cut. A connection
/// that is dropped writes its record, as any other.
async fn until_cut(mut end: watch::Receiver<bool>, serving: impl Future<Output = ()>) {
    let cut = async {
        if end.wait_for(|cut| *cut).await.is_err() {
            // The worker ends, and its connections with it.
            std::future::pending::<()>().await;
        }
    };
    tokio::select! {
        () = serving => {}
        () = cut => {}
    }
}
