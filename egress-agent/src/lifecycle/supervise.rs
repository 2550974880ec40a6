//! What the control runtime waits in: orders, dying workers, the drain.

use std::process::ExitCode;
use std::time::Duration;

use super::drain::{Drain, Drained};
use super::signals::{NextOrder, Order};
use super::worker::{HowEnded, Thread, WorkerEnd, Workers};

/// How the agent ended.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Exit {
    /// Told to stop, and everything open finished in time.
    Drained,
    /// Told to stop; this many connections were cut at the deadline.
    Cut(usize),
    /// Told twice to stop.
    Forced(usize),
    /// A worker died.
    Died(WorkerEnd),
}

impl Exit {
    /// 0 for every stop that was asked for and kept to the drain deadline.
    pub fn code(&self) -> ExitCode {
        match self {
            Self::Drained | Self::Cut(_) => ExitCode::SUCCESS,
            Self::Forced(_) | Self::Died(_) => ExitCode::FAILURE,
        }
    }
}

/// What the embedding gives to [`supervise`].
pub trait Supervised {
    /// Reads settings and policy again, opens logs again.
    fn reload(&mut self) -> impl Future<Output = ()>;

    /// Time that open connections have to end.
    fn drain_deadline(&self) -> Duration;

    /// The drain is about to begin: take nothing new.
    fn draining(&mut self, deadline: Duration, live: usize);
}

/// Serves orders until the agent ends. When this returns, the drain is over and
/// workers see [`Drain::ended`].
pub async fn supervise(
    parts: &mut impl Supervised,
    orders: &mut impl NextOrder,
    workers: &mut Workers,
    drain: &Drain,
) -> Exit {
    let first = loop {
        tokio::select! {
            end = workers.next_end() => {
                drain.cut();
                let end = end.unwrap_or(WorkerEnd {
                    thread: Thread::Control,
                    how: HowEnded::Failed("it has no workers".to_owned()),
                });
                tracing::error!("{end}; stopping");
                return Exit::Died(end);
            }
            order = orders.next() => match order {
                Order::Reload => parts.reload().await,
                Order::Stop | Order::Drain => break order,
            },
        }
    };
    let deadline = parts.drain_deadline();
    tracing::info!(
        live = drain.live(),
        deadline_ms = u64::try_from(deadline.as_millis()).unwrap_or(u64::MAX),
        by = if first == Order::Stop {
            "signal"
        } else {
            "egressctl"
        },
        "draining"
    );
    parts.draining(deadline, drain.live());
    drain.begin(deadline);
    let finish = drain.finish();
    tokio::pin!(finish);
    let mut died = None;
    loop {
        tokio::select! {
            drained = &mut finish => {
                let exit = match drained {
                    Drained::Clean => {
                        tracing::info!("drained");
                        Exit::Drained
                    }
                    Drained::Cut(left) => {
                        tracing::warn!(left, "drain deadline passed; open connections are cut");
                        Exit::Cut(left)
                    }
                };
                return died.map_or(exit, Exit::Died);
            }
            order = orders.next() => match order {
                Order::Stop => {
                    let left = drain.live();
                    drain.cut();
                    tracing::warn!(left, "stopping at once; open connections are cut");
                    return Exit::Forced(left);
                }
                Order::Reload => tracing::info!("not reloading: draining"),
                Order::Drain => {}
            },
            // What the worker carried is gone, and its guards with it.
            Some(end) = workers.next_end() => {
                tracing::error!("{end} while draining");
                died = died.or(Some(end));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]
    use std::collections::VecDeque;
    use std::io;

    use tokio::time::{Instant, sleep};

    use super::super::worker;
    use super::*;

    /// Gives orders at set times after the start of the test.
    struct Script(Instant, VecDeque<(u64, Order)>);

    impl Script {
        fn new(orders: &[(u64, Order)]) -> Self {
            Self(Instant::now(), orders.iter().copied().collect())
        }
    }

    impl NextOrder for Script {
        async fn next(&mut self) -> Order {
            match self.1.front() {
                Some(&(at, _)) => tokio::time::sleep_until(self.0 + secs(at)).await,
                None => std::future::pending().await,
            }
            self.1.pop_front().unwrap().1
        }
    }

    #[derive(Default)]
    struct Parts {
        reloads: u32,
        drained: u32,
    }

    impl Supervised for Parts {
        async fn reload(&mut self) {
            self.reloads += 1;
        }
        fn drain_deadline(&self) -> Duration {
            secs(30)
        }
        fn draining(&mut self, _: Duration, _: usize) {
            self.drained += 1;
        }
    }

    fn secs(n: u64) -> Duration {
        Duration::from_secs(n)
    }

    fn workers(drain: &Drain) -> Workers {
        worker::spawn(1, drain, |context| async move {
            context.drain.ended().await;
            Ok::<_, io::Error>(())
        })
        .unwrap()
    }

    async fn run(orders: &[(u64, Order)], open_for: Option<u64>) -> (Exit, u64, Parts) {
        let drain = Drain::new();
        let mut workers = workers(&drain);
        if let Some(open_for) = open_for {
            let guard = drain.enter();
            tokio::spawn(async move {
                sleep(secs(open_for)).await;
                drop(guard);
            });
        }
        let start = Instant::now();
        let mut parts = Parts::default();
        let mut script = Script::new(orders);
        let exit = supervise(&mut parts, &mut script, &mut workers, &drain).await;
        assert!(drain.is_draining());
        let elapsed = start.elapsed().as_secs();
        (exit, elapsed, parts)
    }

    #[tokio::test(start_paused = true)]
    async fn a_stop_with_nothing_open_is_prompt_and_clean() {
        let (exit, at, parts) = run(&[(1, Order::Reload), (2, Order::Stop)], None).await;
        assert_eq!((exit, at), (Exit::Drained, 2));
        assert_eq!((parts.reloads, parts.drained), (1, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn open_connections_are_waited_for() {
        let (exit, at, _) = run(&[(1, Order::Stop)], Some(10)).await;
        assert_eq!((exit, at), (Exit::Drained, 10));
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_holds() {
        let (exit, at, _) = run(&[(1, Order::Drain), (2, Order::Drain)], Some(100)).await;
        assert_eq!((exit, at), (Exit::Cut(1), 31));
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_signal_stops_at_once() {
        let (exit, at, parts) = run(
            &[(1, Order::Stop), (2, Order::Reload), (3, Order::Stop)],
            Some(100),
        )
        .await;
        assert_eq!((exit.clone(), at), (Exit::Forced(1), 3));
        assert_eq!(parts.reloads, 0);
        assert_eq!(
            format!("{:?}", exit.code()),
            format!("{:?}", ExitCode::FAILURE)
        );
    }

    #[tokio::test]
    async fn a_dead_worker_ends_the_agent() {
        let drain = Drain::new();
        let mut workers = worker::spawn(2, &drain, |context| async move {
            assert!(context.index != 0, "of test");
            context.drain.ended().await;
            Ok::<_, io::Error>(())
        })
        .unwrap();
        let mut script = Script::new(&[]);
        let exit = supervise(&mut Parts::default(), &mut script, &mut workers, &drain).await;
        assert!(
            matches!(&exit, Exit::Died(end) if end.thread == Thread::Worker(0)),
            "{exit:?}"
        );
        assert!(workers.all_ended(secs(60)).await);
    }
}
