//! `observe`: destinations that nothing registers, and documents that would.

use http::Method;

use super::Failure;
use super::args::ObserveArgs;
use super::client::Client;
use super::output;
use super::suggest::suggest;
use super::table::Column;
use crate::admin::view::Unregistered;

const COLUMNS: &[Column<Unregistered>] = &[
    Column::new("NAMESPACE", |row| row.namespace.clone()),
    Column::new("CALLER", |row| row.workload.clone()),
    Column::wide("CGROUP", |row| row.cgroup.clone()),
    Column::wide("COMM", |row| row.comm.clone()),
    Column::wide("PID", |row| row.pid.to_string()),
    Column::wide("UID", |row| row.uid.to_string()),
    Column::wide("NETNS", |row| row.netns.to_string()),
    Column::new("NAME", |row| row.names.first().cloned().unwrap_or_default()),
    Column::new("DESTINATION", |row| row.destination.clone()),
    Column::new("TRANSPORT", |row| row.transport.clone()),
    Column::new("COUNT", |row| row.count.to_string()),
    Column::new("LAST", |row| ago(row.last_seconds)),
    Column::new("VERDICT", |row| {
        if row.refused { "refused" } else { "passed" }.to_owned()
    }),
];

fn ago(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m", seconds / 60),
        3600..86_400 => format!("{}h", seconds / 3600),
        _ => format!("{}d", seconds / 86_400),
    }
}

/// `observe`.
pub(super) async fn observe(client: &Client, args: &ObserveArgs) -> Result<(), Failure> {
    if args.clear {
        let path = "/v1/unregistered";
        return Ok(client.json(Method::DELETE, path, &[], "").await?);
    }
    let parameters = [("namespace", args.select.namespace.as_deref())];
    let mut rows: Vec<Unregistered> = client.get("/v1/unregistered", &parameters).await?;
    rows.retain(|row| row.refused || !args.refused);
    if args.suggest {
        output::text(&suggest(&rows))?;
        return Ok(());
    }
    output::rows(
        args.select.output.output,
        COLUMNS,
        &rows,
        "nothing unregistered was seen",
    )?;
    Ok(())
}
