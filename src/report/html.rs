//! Text and pictures made safe to stand in an HTML page.

use base64::{Engine, engine::general_purpose::STANDARD};
use image::{ImageFormat, ImageReader};
use std::io::Cursor;

/// `text` as element content or inside a quoted attribute.
pub fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            // Not allowed in HTML, and all that file names could smuggle in.
            c if c.is_control() && c != '\n' && c != '\t' => out.push('\u{fffd}'),
            c => out.push(c),
        }
    }
    out
}

/// A PNG or JPEG embedded as `<img>` inside a button that enlarges it. Bytes that are neither become a line that says so.
pub fn picture(bytes: &[u8], alt: &str) -> String {
    let Some((mime, (width, height))) = probe(bytes) else {
        return format!(r#"<p class="missing">{}: the picture cannot be read.</p>"#, escape(alt));
    };
    format!(
        r#"<button type="button" class="zoom" aria-label="Enlarge: {alt}"><img src="data:{mime};base64,{data}" alt="{alt}" width="{width}" height="{height}" loading="lazy" decoding="async"></button>"#,
        alt = escape(alt),
        data = STANDARD.encode(bytes),
    )
}

/// Type and size, from the header alone.
fn probe(bytes: &[u8]) -> Option<(&'static str, (u32, u32))> {
    let reader = ImageReader::new(Cursor::new(bytes)).with_guessed_format().ok()?;
    let mime = match reader.format()? {
        ImageFormat::Png => "image/png",
        ImageFormat::Jpeg => "image/jpeg",
        _ => return None,
    };
    Some((mime, reader.into_dimensions().ok()?))
}

/// A box that scrolls on its own where `table` is wider or longer than the screen; reachable by keyboard.
pub fn scroll_box(label: &str, table: &str) -> String {
    format!(r#"<div class="scroll" role="region" tabindex="0" aria-label="{}">{table}</div>"#, escape(label))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn escaping_covers_markup_attributes_and_control_characters() {
        assert_eq!(escape(r#"a<b>&"c"'d'"#), "a&lt;b&gt;&amp;&quot;c&quot;&#39;d&#39;");
        assert_eq!(escape("µm/px\u{0}\u{1b}"), "µm/px\u{fffd}\u{fffd}");
    }

    #[test]
    fn pictures_carry_their_size_and_bad_bytes_are_named() {
        let mut png = Vec::new();
        image::RgbImage::new(3, 2).write_to(&mut Cursor::new(&mut png), ImageFormat::Png).unwrap();
        let html = picture(&png, "a \"slide\"");
        assert!(html.contains(r#"src="data:image/png;base64,"#) && html.contains(r#"width="3" height="2""#), "{html}");
        assert!(html.contains("alt=\"a &quot;slide&quot;\""));
        assert_eq!(picture(b"GIF89a", "x"), r#"<p class="missing">x: the picture cannot be read.</p>"#);
        assert_eq!(picture(&png[..9], "x"), r#"<p class="missing">x: the picture cannot be read.</p>"#);
    }
}
