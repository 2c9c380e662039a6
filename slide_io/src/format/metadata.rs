//! What vendors write about a scan, brought to one form: scale, magnification, properties under OpenSlide's names.

use std::collections::BTreeMap;

use crate::geometry::{Level, Mpp};

/// Scales outside this range, in µm/px, are not those of a slide scan: 72 dpi is 353 µm/px, a missing value 0.
pub const PLAUSIBLE_MPP: std::ops::RangeInclusive<f64> = 0.02..=50.0;

/// Set where the scales along x and y differ by more than 1 %: their ratio. [`Mpp`] is then their geometric mean.
pub(crate) const ANISOTROPY: &str = "slide_io.mpp-x-over-y";

/// Name of a property that OpenSlide defines too.
pub(super) const MPP_X: &str = "openslide.mpp-x";
/// Name of a property that OpenSlide defines too.
pub(super) const MPP_Y: &str = "openslide.mpp-y";
/// Name of a property that OpenSlide defines too.
pub(super) const OBJECTIVE_POWER: &str = "openslide.objective-power";

/// The scale in the properties: the vendor's, else from the resolution tags, whose µm/px are then added to the
/// properties. `None` where there is none, or none that a scan could have.
pub(super) fn scale(properties: &mut BTreeMap<String, String>) -> Option<Mpp> {
    let number = |properties: &BTreeMap<_, String>, name: &str| {
        properties.get(name).and_then(|text| text.trim().parse::<f64>().ok())
    };
    let plausible = |mpp: f64| PLAUSIBLE_MPP.contains(&mpp).then_some(mpp);
    let stated = |properties: &BTreeMap<_, String>, name| number(properties, name).and_then(plausible);
    let (mut x, mut y) = (stated(properties, MPP_X), stated(properties, MPP_Y));
    if x.is_none() && y.is_none() {
        let microns = match properties.get("tiff.ResolutionUnit").map(String::as_str) {
            Some("centimeter") => 10_000.0,
            // The TIFF standard's default unit is the inch.
            Some("inch") | None => 25_400.0,
            Some(_) => return None,
        };
        let tagged = |name| number(properties, name).map(|per_unit| microns / per_unit).and_then(plausible);
        (x, y) = (tagged("tiff.XResolution"), tagged("tiff.YResolution"));
        for (name, mpp) in [(MPP_X, x), (MPP_Y, y)] {
            if let Some(mpp) = mpp {
                properties.insert(name.to_owned(), mpp.to_string());
            }
        }
    }
    let (x, y) = (x.or(y)?, y.or(x)?);
    if (x / y - 1.0).abs() > 0.01 {
        properties.insert(ANISOTROPY.to_owned(), (x / y).to_string());
    }
    // The mean of equal values is that value, free of rounding.
    Some(Mpp(if x == y { x } else { (x * y).sqrt() }))
}

/// The nominal magnification in the properties.
pub(super) fn magnification(properties: &BTreeMap<String, String>) -> Option<f64> {
    let stated: f64 = properties.get(OBJECTIVE_POWER)?.trim().parse().ok()?;
    (stated.is_finite() && stated > 0.0).then_some(stated)
}

/// The `key = value` pairs of an Aperio image description, which separates them by `|`.
pub(super) fn aperio_pairs(description: &str) -> impl Iterator<Item = (&str, &str)> {
    description
        .split('|')
        .skip(1)
        .filter_map(|pair| pair.split_once('='))
        .map(|(key, value)| (key.trim(), value.trim()))
}

/// µm per pixel along `axis` (`X` or `Y`) of the first image of an OME-XML description.
pub(super) fn ome_scale(description: &str, axis: char) -> Option<f64> {
    let attribute = |name: &str| {
        let (_, rest) = description.split_once(&format!("PhysicalSize{axis}{name}=\""))?;
        rest.split_once('"').map(|(value, _)| value.trim())
    };
    if !description.contains("<OME") && !description.contains(":OME") {
        return None;
    }
    let microns = match attribute("Unit") {
        // The standard's default; the sign is often written as a character reference.
        None | Some("µm" | "μm" | "um" | "&#181;m" | "&#xB5;m" | "&#xb5;m") => 1.0,
        Some("nm") => 1e-3,
        Some("mm") => 1e3,
        Some("cm") => 1e4,
        Some("m") => 1e6,
        Some(_) => return None,
    };
    Some(attribute("")?.parse::<f64>().ok()? * microns)
}

/// Adds the properties by which OpenSlide describes the pyramid.
pub(super) fn describe_levels(levels: &[Level], properties: &mut BTreeMap<String, String>) {
    properties.insert("openslide.level-count".to_owned(), levels.len().to_string());
    for (index, level) in levels.iter().enumerate() {
        let mut add = |name: &str, value: String| properties.insert(format!("openslide.level[{index}].{name}"), value);
        add("width", level.size.width.to_string());
        add("height", level.size.height.to_string());
        add("downsample", level.downsample.to_string());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(pairs: &[(&str, &str)]) -> (Option<Mpp>, BTreeMap<String, String>) {
        let mut properties = pairs.iter().map(|(k, v)| (k.to_string(), v.to_string())).collect();
        (scale(&mut properties), properties)
    }

    #[test]
    fn vendor_scale_wins_over_resolution_tags() {
        let (mpp, _) = of(&[(MPP_X, "0.499"), (MPP_Y, "0.499"), ("tiff.XResolution", "10")]);
        assert_eq!(mpp, Some(Mpp(0.499)));
    }

    #[test]
    fn resolution_tags_in_either_unit() {
        let tags =
            [("tiff.XResolution", "20000"), ("tiff.YResolution", "20000"), ("tiff.ResolutionUnit", "centimeter")];
        let (mpp, properties) = of(&tags);
        assert_eq!(mpp, Some(Mpp(0.5)));
        assert_eq!(properties[MPP_X], "0.5");
        assert_eq!(of(&[("tiff.XResolution", "50800")]).0, Some(Mpp(0.5)), "inch is the default, one axis is enough");
        assert_eq!(of(&[("tiff.XResolution", "50800"), ("tiff.ResolutionUnit", "none")]).0, None);
    }

    #[test]
    fn nonsense_is_no_scale() {
        assert_eq!(of(&[]).0, None);
        for dpi in ["72", "0", "1", "-5", "nan", "inf", "words"] {
            assert_eq!(of(&[("tiff.XResolution", dpi), ("tiff.ResolutionUnit", "inch")]).0, None, "{dpi}");
        }
        assert_eq!(of(&[(MPP_X, "0"), (MPP_Y, "1000")]).0, None);
    }

    #[test]
    fn unequal_axes_give_the_geometric_mean_and_a_property() {
        let (mpp, properties) = of(&[(MPP_X, "0.4"), (MPP_Y, "0.9")]);
        assert!((mpp.unwrap().0 - 0.6).abs() < 1e-12);
        assert!(properties[ANISOTROPY].starts_with("0.444"));
        assert!(!of(&[(MPP_X, "0.5"), (MPP_Y, "0.502")]).1.contains_key(ANISOTROPY), "under 1 %");
    }

    #[test]
    fn ome_descriptions() {
        let ome = |pixels: &str| ome_scale(&format!("<OME xmlns=\"a\"><Image><Pixels {pixels}/></Image></OME>"), 'X');
        assert_eq!(ome("PhysicalSizeX=\"0.25\" PhysicalSizeXUnit=\"µm\" PhysicalSizeY=\"1\""), Some(0.25));
        assert_eq!(ome("PhysicalSizeX=\"0.25\" PhysicalSizeY=\"1\""), Some(0.25), "µm is the default");
        assert_eq!(ome("PhysicalSizeXUnit=\"nm\" PhysicalSizeX=\"500\""), Some(0.5));
        assert_eq!(ome("PhysicalSizeXUnit=\"pixel\" PhysicalSizeX=\"1\""), None);
        assert_eq!(ome("SizeX=\"9\""), None);
        assert_eq!(ome_scale("PhysicalSizeX=\"0.25\"", 'X'), None, "not OME");
    }

    #[test]
    fn aperio_description() {
        let pairs: Vec<_> =
            aperio_pairs("Aperio Image Library v11\r\n20x20|AppMag = 20|MPP = 0.4990|Filename = a=b").collect();
        assert_eq!(pairs, [("AppMag", "20"), ("MPP", "0.4990"), ("Filename", "a=b")]);
    }
}
