//! Throughput against p99, as an SVG: a panel per workload, a line per system, a point per step of the sweep.
//!
//! Both axes are logarithmic. The file is self-contained: no scripts, only the viewer's own font.

use std::fmt::Write;

/// A system's points: responses per second, and p99 in milliseconds; by ascending requests in flight.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Line {
    pub(super) label: String,
    pub(super) points: Vec<(f64, f64)>,
}

/// One diagram of the plot.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Panel {
    pub(super) title: String,
    pub(super) lines: Vec<Line>,
}

const PANEL_WIDTH: f64 = 560.0;
const PANEL_HEIGHT: f64 = 420.0;
const LEFT: f64 = 70.0;
const RIGHT: f64 = 20.0;
const TOP: f64 = 60.0;
const BOTTOM: f64 = 60.0;
/// Panels side by side.
const COLUMNS: usize = 2;
const LEGEND_LINE: f64 = 22.0;
/// Distinguishable for most colour-blind readers (Okabe & Ito, 2008).
const COLOURS: [&str; 6] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];

/// A logarithmic axis: maps the numbers `first..=last` to the pixels `from..=to`.
#[derive(Debug, Clone, Copy)]
struct Axis {
    first: f64,
    last: f64,
    from: f64,
    to: f64,
}

impl Axis {
    /// An axis that contains all numbers, with some room at both ends.
    fn around(numbers: impl Iterator<Item = f64>, from: f64, to: f64) -> Self {
        let (mut least, mut most) = (f64::INFINITY, 0.0_f64);
        for number in numbers.filter(|number| *number > 0.0) {
            (least, most) = (least.min(number), most.max(number));
        }
        if most == 0.0 {
            (least, most) = (1.0, 10.0);
        }
        Self { first: least / 1.3, last: most * 1.3, from, to }
    }

    fn position(self, number: f64) -> f64 {
        let share = (number.max(self.first) / self.first).ln() / (self.last / self.first).ln();
        self.from + share * (self.to - self.from)
    }

    /// Ticks at 1, 2 and 5 times powers of ten.
    fn ticks(self) -> Vec<f64> {
        let decades = (self.first.log10().floor() as i32)..=(self.last.log10().ceil() as i32);
        let ticks = decades.flat_map(|decade| [1.0, 2.0, 5.0].map(|digit| digit * 10_f64.powi(decade)));
        ticks.filter(|tick| (self.first..=self.last).contains(tick)).collect()
    }
}

/// The SVG file. Writing to a string does not fail.
pub(super) fn svg(title: &str, panels: &[Panel]) -> String {
    let legend: Vec<&str> = labels(panels);
    let width = PANEL_WIDTH * panels.len().clamp(1, COLUMNS) as f64;
    let legend_top = PANEL_HEIGHT * panels.len().div_ceil(COLUMNS) as f64;
    let height = legend_top + LEGEND_LINE * legend.len() as f64 + 20.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" viewBox=\"0 0 {width} {height}\" font-family=\"sans-serif\" font-size=\"12\">\n<rect width=\"{width}\" height=\"{height}\" fill=\"white\"/>\n<text x=\"{LEFT}\" y=\"24\" font-size=\"16\">{}</text>\n",
        escaped(title)
    );
    for (i, panel) in panels.iter().enumerate() {
        let (column, line) = (i % COLUMNS, i / COLUMNS);
        let (x, y) = (PANEL_WIDTH * column as f64, PANEL_HEIGHT * line as f64);
        let _ = writeln!(svg, "<g transform=\"translate({x},{y})\">");
        draw_panel(&mut svg, panel, &legend);
        svg.push_str("</g>\n");
    }
    for (i, label) in legend.iter().enumerate() {
        let (y, colour) = (legend_top + LEGEND_LINE * (i as f64 + 0.5), COLOURS[i % COLOURS.len()]);
        let _ = writeln!(
            svg,
            "<rect x=\"{LEFT}\" y=\"{}\" width=\"24\" height=\"4\" fill=\"{colour}\"/><text x=\"{}\" y=\"{}\">{}</text>",
            y - 6.0,
            LEFT + 34.0,
            y,
            escaped(label)
        );
    }
    svg + "</svg>\n"
}

fn draw_panel(svg: &mut String, panel: &Panel, legend: &[&str]) {
    let points = || panel.lines.iter().flat_map(|line| line.points.iter().copied());
    let (right, bottom) = (PANEL_WIDTH - RIGHT, PANEL_HEIGHT - BOTTOM);
    let x = Axis::around(points().map(|point| point.0), LEFT, right);
    let y = Axis::around(points().map(|point| point.1), bottom, TOP);
    for tick in x.ticks() {
        let at = x.position(tick);
        let _ = writeln!(
            svg,
            "<line x1=\"{at:.1}\" y1=\"{TOP}\" x2=\"{at:.1}\" y2=\"{bottom}\" stroke=\"#ddd\"/><text x=\"{at:.1}\" y=\"{}\" text-anchor=\"middle\">{}</text>",
            bottom + 18.0,
            short(tick)
        );
    }
    for tick in y.ticks() {
        let at = y.position(tick);
        let _ = writeln!(
            svg,
            "<line x1=\"{LEFT}\" y1=\"{at:.1}\" x2=\"{right}\" y2=\"{at:.1}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" text-anchor=\"end\">{}</text>",
            LEFT - 8.0,
            at + 4.0,
            short(tick)
        );
    }
    let _ = writeln!(
        svg,
        "<rect x=\"{LEFT}\" y=\"{TOP}\" width=\"{}\" height=\"{}\" fill=\"none\" stroke=\"#444\"/><text x=\"{LEFT}\" y=\"50\" font-weight=\"bold\">{}</text><text x=\"{}\" y=\"{}\" text-anchor=\"middle\">responses per second</text><text transform=\"translate(20,{}) rotate(-90)\" text-anchor=\"middle\">p99, milliseconds</text>",
        right - LEFT,
        bottom - TOP,
        escaped(&panel.title),
        (LEFT + right) / 2.0,
        bottom + 40.0,
        (TOP + bottom) / 2.0
    );
    for line in &panel.lines {
        let colour = COLOURS[legend.iter().position(|label| *label == line.label).unwrap_or(0) % COLOURS.len()];
        let mut path = String::new();
        for &(rate, p99) in &line.points {
            let (at_x, at_y) = (x.position(rate), y.position(p99));
            let _ = write!(path, "{at_x:.1},{at_y:.1} ");
            let _ = writeln!(svg, "<circle cx=\"{at_x:.1}\" cy=\"{at_y:.1}\" r=\"4\" fill=\"{colour}\"/>");
        }
        let _ = writeln!(svg, "<polyline points=\"{path}\" fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\"/>");
    }
}

/// The labels of all systems, in order of appearance.
fn labels(panels: &[Panel]) -> Vec<&str> {
    let mut labels: Vec<&str> = Vec::new();
    for line in panels.iter().flat_map(|panel| &panel.lines) {
        if !labels.contains(&line.label.as_str()) {
            labels.push(&line.label);
        }
    }
    labels
}

/// A number with `k` for thousands and `M` for millions.
fn short(number: f64) -> String {
    if number >= 1e6 {
        format!("{}M", number / 1e6)
    } else if number >= 1e3 {
        format!("{}k", number / 1e3)
    } else {
        format!("{}", (number * 1e6).round() / 1e6)
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn axes_are_logarithmic() {
        let axis = Axis::around([10.0, 1_000.0].into_iter(), 0.0, 100.0);
        let (first, second) =
            (axis.position(100.0) - axis.position(10.0), axis.position(1_000.0) - axis.position(100.0));
        assert!((first - second).abs() < 1e-9 && first > 0.0);
        assert!(axis.position(10.0) > 0.0 && axis.position(1_000.0) < 100.0, "there is room at both ends");
        assert_eq!(axis.ticks(), [10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1_000.0]);
    }

    #[test]
    fn every_system_has_one_colour_and_one_line_in_the_legend() {
        let line = |label: &str, rate| Line { label: label.to_owned(), points: vec![(rate, 1.0), (rate * 2.0, 3.0)] };
        let panels = [
            Panel { title: "SET".to_owned(), lines: vec![line("a", 5.0), line("b & c", 7.0)] },
            Panel { title: "GET".to_owned(), lines: vec![line("b & c", 9.0)] },
        ];
        let svg = svg("<title>", &panels);
        assert_eq!(svg.matches("b &amp; c").count(), 1);
        assert_eq!(svg.matches(&format!("stroke=\"{}\"", COLOURS[1])).count(), 2);
        assert_eq!(svg.matches("<circle").count(), 6);
        assert!(!svg.contains("NaN") && !svg.contains("inf") && svg.contains("&lt;title&gt;"));
    }

    #[test]
    fn a_panel_without_points_is_still_valid() {
        let svg = svg("", &[Panel { title: String::new(), lines: Vec::new() }]);
        assert!(!svg.contains("NaN") && svg.ends_with("</svg>\n"));
    }
}
