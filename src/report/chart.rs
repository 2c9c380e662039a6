//! Curves as SVG.
//!
//! plotters lays out and draws; it knows only fixed colours, so each role (ink, grid, series 1 to 6) is drawn in a
//! colour of its own and that colour is then replaced by a CSS variable, which makes the chart follow the page from
//! light to dark. Title, axis labels and legend are HTML around it: they wrap on a phone and can be selected.

use super::html::escape;
use super::number::{significant, tick};
use super::{Chart, Series};
use plotters::coord::ranged1d::{KeyPointHint, NoDefaultFormatting, ValueFormatter};
use plotters::prelude::*;
use std::ops::Range;

/// User units of the drawing; the page scales it.
const SIZE: (u32, u32) = (960, 520);
/// Colours of the page's palette (`--s1` to `--s6`).
const PALETTE: usize = 6;
/// Most points drawn of a series.
const MAX_POINTS: usize = 600;
/// Series of more points than this get a smoothed line over the raw one.
const SMOOTH_FROM: usize = 80;
/// ... if they are noisier than this share of their range: a schedule stays as it is.
const NOISE: f64 = 0.004;
/// Series of fewer points than this get a mark at each.
const MARKS_BELOW: usize = 40;

const INK: RGBColor = RGBColor(1, 0, 0);
const GRID: RGBColor = RGBColor(2, 0, 0);

/// A chart with title, axis labels and legend, or nothing if it has no point to show.
pub fn figure(chart: &Chart) -> String {
    let lines: Vec<Line> = chart.series.iter().map(|series| Line::new(series, chart.log_y)).collect();
    let Some(frame) = Frame::around(&lines, chart.log_y) else { return String::new() };
    let legend: String = chart
        .series
        .iter()
        .enumerate()
        .map(|(i, series)| {
            let last = series.points.iter().rev().find(|p| p.1.is_finite());
            let last = last.map_or("no values".into(), |p| format!("last {}", significant(p.1)));
            let (name, color) = (escape(&series.name), i % PALETTE + 1);
            format!(r#"<li style="--c:var(--s{color})"><span class="key"></span>{name} <small>{last}</small></li>"#)
        })
        .collect();
    let smoothed = if lines.iter().any(|l| l.smooth.is_some()) { ", smoothed over the raw values" } else { "" };
    let scale = if chart.log_y { ", logarithmic" } else { "" };
    let svg = frame.draw(&lines).unwrap_or_else(|e| format!("<p>This chart could not be drawn: {}</p>", escape(&e)));
    format!(
        r#"<figure class="chart"><figcaption><h3>{title}</h3><p class="axis">{y}{scale}{smoothed}</p></figcaption>
<svg viewBox="0 0 {w} {h}" role="img" aria-label="{title}: {y} against {x}">{svg}</svg>
<p class="axis x">{x}</p><ul class="legend">{legend}</ul></figure>
"#,
        title = escape(&chart.title),
        x = escape(&chart.x_label),
        y = escape(&chart.y_label),
        w = SIZE.0,
        h = SIZE.1,
    )
}

/// A series ready to draw: transformed, split at gaps, thinned.
struct Line {
    raw: Vec<Vec<(f64, f64)>>,
    smooth: Option<Vec<Vec<(f64, f64)>>>,
    marks: bool,
}

impl Line {
    fn new(series: &Series, log_y: bool) -> Self {
        let transformed = |&(x, y): &(f64, f64)| (x, if log_y { y.log10() } else { y });
        let points: Vec<_> = series.points.iter().map(transformed).collect();
        let pieces: Vec<&[(f64, f64)]> =
            points.split(|p| !(p.0.is_finite() && p.1.is_finite())).filter(|s| !s.is_empty()).collect();
        let total: usize = pieces.iter().map(|s| s.len()).sum();
        // Every piece gets its share, so that a series full of gaps is thinned like one without.
        let share = |piece: &[(f64, f64)]| (MAX_POINTS * piece.len() / total).max(2);
        let smooth: Vec<_> = pieces.iter().map(|piece| smooth(piece, (total / 40) | 1)).collect();
        let noisy = total > SMOOTH_FROM && noise(&pieces, &smooth) > NOISE;
        Self {
            raw: pieces.iter().map(|piece| thin(piece, share(piece))).collect(),
            smooth: noisy.then(|| smooth.iter().map(|piece| sample(piece, share(piece))).collect()),
            marks: total < MARKS_BELOW,
        }
    }
}

/// The middle one of what smoothing takes away, relative to the range of what it leaves.
fn noise(pieces: &[&[(f64, f64)]], smooth: &[Vec<(f64, f64)>]) -> f64 {
    let left = || smooth.iter().flatten().map(|p| p.1);
    let mut taken: Vec<f64> = pieces.iter().flat_map(|p| p.iter()).zip(left()).map(|(p, s)| (p.1 - s).abs()).collect();
    taken.sort_by(f64::total_cmp);
    range(left()).map_or(0.0, |r| taken[taken.len() / 2] / (r.end - r.start))
}

/// At most about `limit` points: both ends, and the lowest and highest of each run between, so that spikes stay.
fn thin(points: &[(f64, f64)], limit: usize) -> Vec<(f64, f64)> {
    let [first, inner @ .., last] = points else { return points.to_vec() };
    if points.len() <= limit {
        return points.to_vec();
    }
    let run = inner.len().div_ceil((limit / 2).saturating_sub(1).max(1));
    let extremes = inner.chunks(run).flat_map(|chunk| {
        let by_y = |a: &(usize, &(f64, f64)), b: &(usize, &(f64, f64))| a.1.1.total_cmp(&b.1.1);
        let low = chunk.iter().enumerate().min_by(by_y).map(|p| p.0);
        let high = chunk.iter().enumerate().max_by(by_y).map(|p| p.0);
        let (a, b) = (low.min(high), low.max(high));
        a.into_iter().chain(b.filter(|_| a != b)).map(|i| chunk[i])
    });
    std::iter::once(*first).chain(extremes).chain([*last]).collect()
}

/// Evenly spaced points, the first and the last among them.
fn sample(points: &[(f64, f64)], limit: usize) -> Vec<(f64, f64)> {
    if points.len() <= limit {
        return points.to_vec();
    }
    (0..limit).map(|i| points[i * (points.len() - 1) / (limit - 1)]).collect()
}

/// The local straight line through `window` (odd) points around each: a moving average that follows a slope up to the
/// very ends, where the points are on one side only.
fn smooth(points: &[(f64, f64)], window: usize) -> Vec<(f64, f64)> {
    // Sums of y and of i y up to each point.
    let mut sums = vec![(0.0, 0.0); points.len() + 1];
    for (i, p) in points.iter().enumerate() {
        sums[i + 1] = (sums[i].0 + p.1, sums[i].1 + i as f64 * p.1);
    }
    let local = |(i, p): (usize, &(f64, f64))| {
        let (first, end) = (i.saturating_sub(window / 2), (i + window / 2 + 1).min(points.len()));
        let n = (end - first) as f64;
        let (sum, moment) = (sums[end].0 - sums[first].0, sums[end].1 - sums[first].1);
        let middle = (first + end - 1) as f64 / 2.0;
        let spread = n * (n * n - 1.0) / 12.0;
        let slope = if spread > 0.0 { (moment - middle * sum) / spread } else { 0.0 };
        (p.0, sum / n + slope * (i as f64 - middle))
    };
    points.iter().enumerate().map(local).collect()
}

/// An axis that plotters asks where things go: a range with chosen ticks. In decades where it is logarithmic.
#[derive(Clone)]
struct Axis {
    range: Range<f64>,
    ticks: Vec<(f64, String)>,
}

impl Ranged for Axis {
    type FormatOption = NoDefaultFormatting;
    type ValueType = f64;

    fn map(&self, value: &f64, limit: (i32, i32)) -> i32 {
        let share = (value - self.range.start) / (self.range.end - self.range.start);
        limit.0 + (share * f64::from(limit.1 - limit.0)).round() as i32
    }

    fn key_points<Hint: KeyPointHint>(&self, _: Hint) -> Vec<f64> {
        self.ticks.iter().map(|tick| tick.0).collect()
    }

    fn range(&self) -> Range<f64> {
        self.range.clone()
    }
}

impl ValueFormatter<f64> for Axis {
    fn format_ext(&self, value: &f64) -> String {
        self.ticks.iter().find(|tick| tick.0 == *value).map(|tick| tick.1.clone()).unwrap_or_default()
    }
}

/// Both axes.
struct Frame {
    x: Axis,
    y: Axis,
}

impl Frame {
    fn around(lines: &[Line], log_y: bool) -> Option<Self> {
        let points = || lines.iter().flat_map(|line| line.raw.iter().flatten());
        let x = range(points().map(|p| p.0))?;
        let tight = range(points().map(|p| p.1))?;
        let margin = (tight.end - tight.start) * 0.04;
        let y = tight.start - margin..tight.end + margin;
        let y_ticks = if log_y { decades(&y) } else { linear(&y, 6) };
        Some(Self { x: Axis { ticks: linear(&x, 7), range: x }, y: Axis { ticks: y_ticks, range: y } })
    }

    fn draw(&self, lines: &[Line]) -> Result<String, String> {
        let mut svg = String::new();
        self.draw_on(SVGBackend::with_string(&mut svg, SIZE), lines).map_err(|e| e.to_string())?;
        // The page brings its own <svg>, which scales.
        let body = svg.split_once('>').map_or("", |(_, rest)| rest).replace("</svg>", "");
        let roles = (0..PALETTE).map(|i| (role(i), format!("--s{}", i + 1)));
        let roles = roles.chain([(INK, "--muted".into()), (GRID, "--line".into())]);
        Ok(roles.fold(body, |svg, (color, variable)| themed(&svg, color, &variable)))
    }

    fn draw_on<DB: DrawingBackend>(
        &self,
        backend: DB,
        lines: &[Line],
    ) -> Result<(), DrawingAreaErrorKind<DB::ErrorType>> {
        let area = backend.into_drawing_area();
        let mut chart = ChartBuilder::on(&area)
            .margin_top(14)
            .margin_right(34)
            .x_label_area_size(46)
            .y_label_area_size(104)
            .build_cartesian_2d(self.x.clone(), self.y.clone())?;
        let label = TextStyle::from(("sans-serif", 30)).color(&INK);
        chart
            .configure_mesh()
            .disable_x_mesh()
            .light_line_style(TRANSPARENT)
            .bold_line_style(GRID.stroke_width(2))
            .axis_style(GRID.stroke_width(2))
            .set_all_tick_mark_size(8)
            .label_style(label)
            .draw()?;
        for (i, line) in lines.iter().enumerate() {
            let color = role(i % PALETTE);
            let raw = if line.smooth.is_some() { color.mix(0.3).stroke_width(2) } else { color.stroke_width(4) };
            for piece in &line.raw {
                chart.draw_series(LineSeries::new(piece.iter().copied(), raw))?;
            }
            for piece in line.smooth.iter().flatten() {
                chart.draw_series(LineSeries::new(piece.iter().copied(), color.stroke_width(5)))?;
            }
            if line.marks {
                let mark = |p: &(f64, f64)| Circle::new(*p, 7, color.filled());
                chart.draw_series(line.raw.iter().flatten().map(mark))?;
            }
        }
        area.present()
    }
}

/// The colour that stands for series `i` until [`themed`] replaces it.
fn role(i: usize) -> RGBColor {
    RGBColor(0, 0, i as u8 + 1)
}

/// A colour that stands for a role becomes the variable of that role.
fn themed(svg: &str, RGBColor(r, g, b): RGBColor, variable: &str) -> String {
    let hex = format!("#{r:02X}{g:02X}{b:02X}");
    ["stroke", "fill"].iter().fold(svg.to_owned(), |svg, paint| {
        svg.replace(&format!(r#"{paint}="{hex}""#), &format!(r#"style="{paint}:var({variable})""#))
    })
}

/// Smallest to largest, widened where they are the same.
fn range(values: impl Iterator<Item = f64> + Clone) -> Option<Range<f64>> {
    let low = values.clone().min_by(f64::total_cmp)?;
    let high = values.max_by(f64::total_cmp)?;
    // Below this the steps of f64 would show.
    let least = (low.abs().max(high.abs()) * 1e-6).max(1e-12);
    if high - low > least {
        return Some(low..high);
    }
    let half = if low == 0.0 { 1.0 } else { low.abs() * 0.1 };
    Some(low - half..high + half)
}

/// Multiples of 1, 2 or 5 times a power of ten, at most `count` of them.
fn linear(range: &Range<f64>, count: usize) -> Vec<(f64, String)> {
    let least = (range.end - range.start) / count as f64;
    let power = 10f64.powf(least.log10().floor());
    let step = [1.0, 2.0, 5.0, 10.0].map(|m| m * power).into_iter().find(|s| *s >= least * 0.999_999).unwrap_or(least);
    let (first, last) = ((range.start / step).ceil() as i64, (range.end / step).floor() as i64);
    (first..=last).map(|i| i as f64 * step).map(|v| (v, tick(v, step))).collect()
}

/// Powers of ten, with 2 and 5 times them where there is room, and evenly spaced values where not even that gives two
/// ticks. `range` and the positions are in decades.
fn decades(range: &Range<f64>) -> Vec<(f64, String)> {
    let named = |v: f64| (v.log10(), tick(v, v));
    let exponents = range.start.floor() as i32..=range.end.ceil() as i32;
    let every = ((range.end - range.start) / 6.0).ceil().max(1.0) as i32;
    let sparse: &[f64] = &[1.0];
    for steps in [sparse, &[1.0, 3.0], &[1.0, 2.0, 5.0]] {
        let of = |e: i32| steps.iter().map(move |m| m * 10f64.powi(e));
        let values = exponents.clone().filter(|e| e % every == 0).flat_map(of);
        let ticks: Vec<_> = values.map(named).filter(|t| range.contains(&t.0)).collect();
        if ticks.len() >= 3 {
            return ticks;
        }
    }
    let values = linear(&(10f64.powf(range.start)..10f64.powf(range.end)), 6);
    values.into_iter().map(|(v, name)| (v.log10(), name)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(ticks: &[(f64, String)]) -> Vec<&str> {
        ticks.iter().map(|t| t.1.as_str()).collect()
    }

    #[test]
    fn ticks_are_round_inside_and_few() {
        assert_eq!(
            names(&linear(&(0.0..1.0), 6)),
            ["0.0", "0.2", "0.4", "0.6", "0.8", "1.0"].map(|s| s.replace("0.0", "0"))
        );
        assert_eq!(names(&linear(&(-3.0..12_000.0), 7)), ["0", "2000", "4000", "6000", "8000", "10k", "12k"]);
        assert_eq!(names(&decades(&(-6.0..-3.0))), ["1e−6", "1e−5", "1e−4"]);
        assert_eq!(names(&decades(&(3f64.log10()..80f64.log10()))), ["3", "10", "30"]);
        assert_eq!(names(&decades(&(8.1f64.log10()..9.3f64.log10()))), ["8.2", "8.4", "8.6", "8.8", "9.0", "9.2"]);
        for (low, high) in [(0.0, 1e-9), (10.9, 11.1), (-5.0, 1e7), (0.3, 0.31)] {
            let ticks = linear(&(low..high), 6);
            assert!((2..=7).contains(&ticks.len()), "{low}..{high}: {ticks:?}");
            assert!(ticks.iter().all(|t| t.0 >= low && t.0 <= high));
            let mut unique = names(&ticks);
            unique.dedup();
            assert_eq!(unique.len(), ticks.len(), "{ticks:?}");
        }
    }

    #[test]
    fn thinning_keeps_spikes_and_order() {
        let mut points: Vec<(f64, f64)> = (0..10_000).map(|i| (i as f64, (i as f64 * 0.01).sin())).collect();
        points[7_321].1 = 50.0;
        let thinned = thin(&points, MAX_POINTS);
        assert!(thinned.len() <= MAX_POINTS, "{}", thinned.len());
        assert!(thinned.contains(&(7_321.0, 50.0)));
        assert!(thinned.is_sorted_by(|a, b| a.0 < b.0));
        assert_eq!((thinned.first(), thinned.last()), (points.first(), points.last()));
        assert_eq!(sample(&points, 5).iter().map(|p| p.0).collect::<Vec<_>>(), [0.0, 2499.0, 4999.0, 7499.0, 9999.0]);
    }

    #[test]
    fn smoothing_keeps_a_straight_line_and_averages_noise() {
        let line: Vec<(f64, f64)> = (0..50).map(|i| (i as f64, 3.0 * i as f64 - 7.0)).collect();
        for (a, b) in smooth(&line, 9).iter().zip(&line) {
            assert!((a.1 - b.1).abs() < 1e-9);
        }
        let noise: Vec<(f64, f64)> = (0..50).map(|i| (i as f64, if i % 2 == 0 { 1.0 } else { -1.0 })).collect();
        assert!(smooth(&noise, 9)[4..46].iter().all(|p| p.1.abs() < 0.12));
        assert!(smooth(&noise, 9).iter().all(|p| p.1.abs() < 0.5), "the ends are smoothed too");
        assert_eq!(smooth(&[(1.0, 2.0)], 9), [(1.0, 2.0)]);
    }

    #[test]
    fn gaps_split_a_line_and_a_logarithm_drops_what_has_none() {
        let series = Series { name: "a".into(), points: vec![(0.0, 1.0), (1.0, f64::NAN), (2.0, 0.0), (3.0, 100.0)] };
        assert_eq!(Line::new(&series, false).raw, [vec![(0.0, 1.0)], vec![(2.0, 0.0), (3.0, 100.0)]]);
        assert_eq!(Line::new(&series, true).raw, [vec![(0.0, 0.0)], vec![(3.0, 2.0)]]);
    }

    #[test]
    fn a_chart_follows_the_theme_and_an_empty_one_vanishes() {
        let points = (0..5_000).map(|i| (i as f64, 5.0 + (i as f64).sqrt())).collect();
        let mut chart = Chart { series: vec![Series { name: "a<b".into(), points }], ..Chart::default() };
        let html = figure(&chart);
        assert!(!html.contains("smoothed"), "nothing to smooth in a smooth line");
        assert!(html.contains("stroke:var(--s1)") && html.contains("fill:var(--muted)"));
        assert!(!html.contains("=\"#") && !html.contains("xmlns"), "a fixed colour is left");
        assert!(html.contains("a&lt;b") && html.matches("<svg").count() == 1 && html.matches("</svg>").count() == 1);
        assert!(html.len() < 40_000, "{}", html.len());
        chart.series[0].points = vec![(0.0, f64::NAN)];
        assert_eq!(figure(&chart), "");
        chart.series[0].points = vec![(3.0, 0.5)];
        assert!(figure(&chart).contains("<circle"), "one point is a mark");
    }
}
