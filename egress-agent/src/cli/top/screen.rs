//! The table on a terminal.

use std::time::Duration;

use ratatui::crossterm::event::{Event, KeyCode, KeyEvent, KeyModifiers, poll, read};
use ratatui::layout::{Constraint, Layout};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::Line;
use ratatui::widgets::{Cell, Row as TableRow, Table, TableState};
use ratatui::{DefaultTerminal, Frame};
use tokio::sync::mpsc;

use super::{COLUMNS, Look, Order, Row, rows};
use crate::cli::Failure;
use crate::cli::args::TopArgs;
use crate::cli::client::Client;

/// How long a look for keys waits.
const KEYS: Duration = Duration::from_millis(200);

/// What is on the screen.
#[derive(Debug)]
struct Screen {
    rows: Vec<Row>,
    order: Order,
    turned: bool,
    state: TableState,
    /// Why the last look failed.
    fault: Option<String>,
}

/// What a key asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Wish {
    End,
    Nothing,
    Draw,
}

/// Shows the table until a key ends it.
pub(super) async fn run(
    client: &Client,
    args: &TopArgs,
    interval: Duration,
) -> Result<(), Failure> {
    let mut before = Look::take(client, args).await?;
    // The terminal is given back on every way out, a panic included.
    let mut terminal = ratatui::try_init()?;
    let result = show(&mut terminal, client, args, interval, &mut before).await;
    ratatui::try_restore()?;
    result
}

async fn show(
    terminal: &mut DefaultTerminal,
    client: &Client,
    args: &TopArgs,
    interval: Duration,
    before: &mut Look,
) -> Result<(), Failure> {
    let mut keys = keys();
    let mut screen = Screen::new(rows(before, before));
    let mut ticks = tokio::time::interval(interval);
    ticks.tick().await;
    loop {
        terminal.draw(|frame| screen.draw(frame, args, interval))?;
        tokio::select! {
            event = keys.recv() => match event {
                None => return Ok(()),
                Some(event) => if screen.event(&event) == Wish::End {
                    return Ok(());
                },
            },
            _ = ticks.tick() => match Look::take(client, args).await {
                Ok(now) => {
                    screen.fault = None;
                    screen.rows = rows(before, &now);
                    *before = now;
                }
                // The agent may be restarting: what was seen last stays.
                Err(error) => screen.fault = Some(error.to_string()),
            },
        }
    }
}

/// Keys come from a thread, which ends when nobody listens any more.
fn keys() -> mpsc::Receiver<Event> {
    let (sender, receiver) = mpsc::channel(16);
    std::thread::spawn(move || {
        while !sender.is_closed() {
            match poll(KEYS) {
                Ok(false) => {}
                Ok(true) => {
                    let sent = read().map(|event| sender.blocking_send(event));
                    if !matches!(sent, Ok(Ok(()))) {
                        return;
                    }
                }
                Err(_) => return,
            }
        }
    });
    receiver
}

impl Screen {
    fn new(rows: Vec<Row>) -> Self {
        Self {
            rows,
            order: Order::Busy,
            turned: false,
            state: TableState::default().with_selected(0),
            fault: None,
        }
    }

    fn event(&mut self, event: &Event) -> Wish {
        let Event::Key(KeyEvent {
            code, modifiers, ..
        }) = event
        else {
            return Wish::Draw;
        };
        match code {
            KeyCode::Char('q') | KeyCode::Esc => return Wish::End,
            KeyCode::Char('c') if modifiers.contains(KeyModifiers::CONTROL) => return Wish::End,
            KeyCode::Char('s') => self.order = self.order.next(),
            KeyCode::Char('r') => self.turned = !self.turned,
            KeyCode::Up | KeyCode::Char('k') => self.state.select_previous(),
            KeyCode::Down | KeyCode::Char('j') => self.state.select_next(),
            KeyCode::PageUp => self.state.scroll_up_by(10),
            KeyCode::PageDown => self.state.scroll_down_by(10),
            KeyCode::Home => self.state.select_first(),
            KeyCode::End => self.state.select_last(),
            _ => return Wish::Nothing,
        }
        Wish::Draw
    }

    fn draw(&mut self, frame: &mut Frame<'_>, args: &TopArgs, interval: Duration) {
        self.order.sort(&mut self.rows, self.turned);
        let [head, body, foot] = Layout::vertical([
            Constraint::Length(1),
            Constraint::Min(3),
            Constraint::Length(1),
        ])
        .areas(frame.area());
        let sum = |of: fn(&Row) -> f64| self.rows.iter().map(of).sum::<f64>();
        let open: u64 = self.rows.iter().map(|row| row.open).sum();
        let title = format!(
            "egress: {} ports, {open} connections open, {:.1} errors/s; by {}, every {}s{}",
            self.rows.len(),
            sum(|row| row.errors),
            self.order.word(),
            interval.as_secs(),
            args.host
                .as_deref()
                .map_or_else(String::new, |host| format!("; hosts with {host}")),
        );
        frame.render_widget(Line::from(title).style(Modifier::BOLD), head);
        let lines = self.rows.iter().map(|row| {
            let cells = COLUMNS.iter().map(|column| Cell::from(column.text(row)));
            TableRow::new(cells).style(mood(row))
        });
        let titles = COLUMNS.iter().map(|column| Cell::from(column.title()));
        let widths = COLUMNS.iter().map(|column| match column.title() {
            "HOST" => Constraint::Fill(3),
            "NAMESPACE" => Constraint::Fill(1),
            title => Constraint::Length(u16::try_from(title.len().max(7)).unwrap_or(8)),
        });
        let table = Table::new(lines, widths)
            .header(TableRow::new(titles).style(Modifier::REVERSED))
            .row_highlight_style(Modifier::BOLD);
        frame.render_stateful_widget(table, body, &mut self.state);
        let foot_line = match &self.fault {
            Some(fault) => Line::from(fault.as_str()).style(Color::Red),
            None => Line::from("q ends  s order  r turn  ↑↓ scroll"),
        };
        frame.render_widget(foot_line, foot);
    }
}

/// Red where nothing is healthy, yellow where something is not or fails.
fn mood(row: &Row) -> Style {
    if row.endpoints > 0 && row.healthy == 0 {
        Style::from(Color::Red)
    } else if row.healthy < row.endpoints || row.errors > 0.0 {
        Style::from(Color::Yellow)
    } else {
        Style::new()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "tests")]

    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn row(host: &str, requests: f64, healthy: usize) -> Row {
        Row {
            namespace: "shop".to_owned(),
            host: host.to_owned(),
            port: 443,
            path: "proxy".to_owned(),
            requests,
            healthy,
            endpoints: 2,
            ..Row::default()
        }
    }

    fn args() -> TopArgs {
        TopArgs {
            host: None,
            namespace: None,
            interval: 2,
            once: false,
        }
    }

    #[test]
    fn the_busiest_service_stands_first_and_a_dead_one_is_red() {
        let mut terminal = Terminal::new(TestBackend::new(90, 6)).unwrap();
        let mut screen = Screen::new(vec![row("quiet.com", 0.0, 0), row("busy.com", 12.0, 2)]);
        terminal
            .draw(|frame| screen.draw(frame, &args(), Duration::from_secs(2)))
            .unwrap();
        let buffer = terminal.backend().buffer();
        let line = |y: u16| -> String { (0..90).map(|x| buffer[(x, y)].symbol()).collect() };
        assert!(
            line(0).starts_with("egress: 2 ports, 0 connections open"),
            "{}",
            line(0)
        );
        assert!(line(1).contains("REQ/S"), "{}", line(1));
        assert!(
            line(2).contains("busy.com") && line(2).contains("12.0"),
            "{}",
            line(2)
        );
        assert!(
            line(3).contains("quiet.com") && line(3).contains("0/2"),
            "{}",
            line(3)
        );
        assert_eq!(buffer[(0, 3)].fg, Color::Red);
        assert!(line(5).contains("q ends"), "{}", line(5));
    }

    #[test]
    fn keys_order_turn_and_end() {
        let mut screen = Screen::new(vec![row("a", 1.0, 1)]);
        let key = |code| Event::Key(KeyEvent::new(code, KeyModifiers::NONE));
        assert_eq!(screen.event(&key(KeyCode::Char('s'))), Wish::Draw);
        assert_eq!(screen.order, Order::Errors);
        assert_eq!(screen.event(&key(KeyCode::Char('r'))), Wish::Draw);
        assert!(screen.turned);
        assert_eq!(screen.event(&key(KeyCode::Char('x'))), Wish::Nothing);
        assert_eq!(screen.event(&Event::FocusGained), Wish::Draw);
        assert_eq!(screen.event(&key(KeyCode::Char('q'))), Wish::End);
        let stop = Event::Key(KeyEvent::new(KeyCode::Char('c'), KeyModifiers::CONTROL));
        assert_eq!(screen.event(&stop), Wish::End);
    }
}
