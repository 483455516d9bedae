//! `likewise history`: how a content's or a user's likes came about.

use std::path::PathBuf;

use clap::{Args, ValueEnum};
use likewise_analyst::counts::{Slot, Step, Subject, history};
use likewise_schema::{Content, Timestamp, UserId};
use plotters::prelude::{ChartBuilder, IntoDrawingArea, LineSeries, SVGBackend};
use plotters::style::{Color, RGBColor, WHITE};
use textplots::{Chart, LabelBuilder, LabelFormat, Plot, Shape};

use crate::{
    Failure,
    config::Settings,
    reading::{self, Reading},
    wiring,
};

/// Print how the likes of a content, or of a user, came about, by hours or days.
///
/// Slots in which nothing changed are left out. The count is that at the slot's end.
#[derive(Args)]
#[command(group(clap::ArgGroup::new("subject").required(true).args(["content", "user"])))]
#[command(after_help = "Examples:
  likewise history --content post:42 --by hour --from 7d --plot
  likewise history --content post:42 --svg post-42.svg
  likewise history --user 7 --json")]
pub(crate) struct Options {
    /// Which content.
    #[arg(long, value_name = "TYPE:ID", value_parser = reading::parse_id::<Content>)]
    content: Option<Content>,
    /// Which user: likes of whatever content.
    #[arg(long, value_name = "ID", value_parser = reading::parse_id::<UserId>)]
    user: Option<UserId>,
    /// How long a slot is.
    #[arg(long, value_enum, default_value = "day")]
    by: By,
    /// Leave out slots before: a time (2026-11-01T10:00Z), a date, or how long ago (36h).
    #[arg(long, value_name = "TIME", value_parser = reading::parse_time)]
    from: Option<Timestamp>,
    /// Leave out what was received after that.
    #[arg(long, value_name = "TIME", default_value = "now", value_parser = reading::parse_time)]
    until: Timestamp,
    /// Draw the counts in the terminal.
    #[arg(long, conflicts_with = "json")]
    plot: bool,
    /// Draw the counts into this file, which must be new.
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Print JSON Lines.
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    reading: Reading,
}

#[derive(Clone, Copy, ValueEnum)]
enum By {
    /// Hours of UTC
    Hour,
    /// Days of UTC
    Day,
}

pub(crate) async fn run(settings: &Settings, options: &Options) -> Result<(), Failure> {
    let log = wiring::readable_log(&settings.log).await?;
    let subject = match (options.content, options.user) {
        (Some(content), _) => Subject::Content(content),
        (None, Some(user)) => Subject::User(user),
        (None, None) => return Err("--content or --user is needed".into()),
    };
    if let Some(file) = options.svg.as_ref().filter(|file| file.exists()) {
        return Err(format!("{} exists; name a new file", file.display()).into());
    }
    let step = match options.by {
        By::Hour => Step::Hour,
        By::Day => Step::Day,
    };
    let bar = reading::bar_of(&log).await?;
    let times = (options.from.unwrap_or_default(), options.until);
    let slots = history(&log, subject, step, times, &options.reading.pace(), &reading::moves(&bar)).await?;
    bar.finish_and_clear();
    let title = match subject {
        Subject::Content(content) => format!("Likes of {content}"),
        Subject::User(user) => format!("Likes of user {user}"),
    };
    if let Some(file) = &options.svg {
        let drawing = draw(&title, &slots, step)?;
        std::fs::write(file, drawing).map_err(|e| format!("{} cannot be written ({e})", file.display()))?;
    }
    if options.plot {
        return reading::print(&plot(&title, &slots, step)).map(drop);
    }
    if options.json {
        for slot in &slots {
            if !reading::print(&serde_json::to_string(slot)?)? {
                break;
            }
        }
        return Ok(());
    }
    let width = match step {
        Step::Hour => 16,
        Step::Day => 10,
    };
    if !reading::print(&format!("{:width$} {:>10} {:>10} {:>10}", "from", "gained", "lost", "count"))? {
        return Ok(());
    }
    for Slot { start, gained, lost, count } in &slots {
        if !reading::print(&format!("{} {gained:>10} {lost:>10} {count:>10}", &start.to_string()[..width]))? {
            break;
        }
    }
    Ok(())
}

/// The count at each slot's beginning and end, by the time in steps since the first. Between slots nothing changed.
fn points(slots: &[Slot], step: Step) -> Vec<(f64, f64)> {
    let Some(first) = slots.first() else { return Vec::new() };
    let ends = |slot: &Slot| {
        let at = (slot.start.millis() - first.start.millis()) as f64 / step.millis() as f64;
        let before = slot.count - slot.gained as i64 + slot.lost as i64;
        [(at, before as f64), (at + 1.0, slot.count as f64)]
    };
    slots.iter().flat_map(ends).collect()
}

/// The day, or the hour, that is so many steps after the first slot's beginning.
fn label(slots: &[Slot], step: Step, steps: f64) -> String {
    let first = slots.first().map_or(0, |slot| slot.start.millis());
    let text = Timestamp::saturating_from_millis(first + (steps * step.millis() as f64) as i64).to_string();
    match step {
        Step::Hour => text[..16].replace('T', " "),
        Step::Day => text[..10].to_owned(),
    }
}

/// As wide and as high as a terminal of 80 columns.
fn plot(title: &str, slots: &[Slot], step: Step) -> String {
    let points: Vec<(f32, f32)> = points(slots, step).into_iter().map(|(x, y)| (x as f32, y as f32)).collect();
    let Some(last) = points.last() else { return format!("{title}: nothing changed in that time") };
    let name = |steps: f32| label(slots, step, f64::from(steps));
    let shape = Shape::Lines(&points);
    let (begin, end) = (name(0.0), name(last.0));
    let most = points.iter().map(|(_, count)| *count).fold(1.0, f32::max);
    let mut chart = Chart::new_with_y_range(150, 50, 0.0, last.0, 0.0, most);
    let chart = chart
        .lineplot(&shape)
        .x_label_format(LabelFormat::Custom(Box::new(move |x| if x == 0.0 { begin.clone() } else { end.clone() })))
        .y_label_format(LabelFormat::Custom(Box::new(|y| format!("{y:.0}"))));
    chart.axis();
    chart.figures();
    format!("{title}\n{chart}")
}

/// The drawing's size in pixels.
const SIZE: (u32, u32) = (960, 400);
const LINE: RGBColor = RGBColor(0xc2, 0x18, 0x5b);

fn draw(title: &str, slots: &[Slot], step: Step) -> Result<String, Failure> {
    let points = points(slots, step);
    let width = points.last().map_or(1.0, |(x, _)| *x);
    let most = points.iter().map(|(_, count)| *count).fold(1.0, f64::max);
    let mut drawing = String::new();
    {
        let area = SVGBackend::with_string(&mut drawing, SIZE).into_drawing_area();
        area.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&area)
            .caption(title, ("sans-serif", 20))
            .margin(12)
            .margin_right(56)
            .x_label_area_size(32)
            .y_label_area_size(64)
            .build_cartesian_2d(0.0..width, 0.0..most * 1.05)?;
        chart
            .configure_mesh()
            .x_labels(6)
            .max_light_lines(1)
            .x_label_formatter(&|x| label(slots, step, *x))
            .y_label_formatter(&|y| format!("{y:.0}"))
            .draw()?;
        chart.draw_series(LineSeries::new(points, LINE.stroke_width(2)))?;
        area.present()?;
    }
    Ok(drawing)
}
