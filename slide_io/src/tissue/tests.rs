use super::*;
use image::Rgb;

const GLASS: Rgb<u8> = Rgb([240, 238, 239]);
const EOSIN: Rgb<u8> = Rgb([225, 160, 190]);
const PALE: Rgb<u8> = Rgb([235, 200, 215]);

/// A slide at 8 µm/px, so that a mask pixel is a level-0 pixel of 64 µm².
fn mask(image: &RgbImage, params: &TissueParams) -> TissueMask {
    TissueMask::from_rgb(image, Size::new(image.width(), image.height()), Mpp(8.0), params).unwrap()
}

fn draw(image: &mut RgbImage, x: u32, y: u32, w: u32, h: u32, colour: Rgb<u8>) {
    (y..y + h).for_each(|j| (x..x + w).for_each(|i| image.put_pixel(i, j, colour)));
}

fn glass(side: u32) -> RgbImage {
    // Glass with a little noise, as every scanner has.
    RgbImage::from_fn(side, side, |x, y| {
        let n = ((x * 7 + y * 13) % 5) as u8;
        Rgb([GLASS[0] - n, GLASS[1] - (n + 2) % 5, GLASS[2]])
    })
}

#[test]
fn saturation_and_luminance_by_hand() {
    assert_eq!(saturation([0, 0, 0]), 0);
    assert_eq!(saturation([255, 0, 0]), 255);
    assert_eq!(saturation([200, 100, 150]), 128); // 100 / 200 * 255 = 127.5
    assert_eq!(saturation([240, 240, 240]), 0);
    assert_eq!(luminance([255, 255, 255]), 255);
    assert_eq!(luminance([0, 0, 255]), 29);
}

#[test]
fn tissue_on_glass_is_found_exactly() {
    let mut image = glass(100);
    draw(&mut image, 20, 30, 40, 50, EOSIN);
    let params = TissueParams { smooth: 1, ..TissueParams::default() };
    let mask = mask(&image, &params);
    for (i, &tissue) in mask.data().iter().enumerate() {
        let (x, y) = (i % 100, i / 100);
        assert_eq!(tissue, (20..60).contains(&x) && (30..80).contains(&y), "at {x}, {y}");
    }
    assert!((mask.share() - 0.2).abs() < 1e-12);
    assert_eq!(mask.empty_reason(), None);
}

#[test]
fn pale_tissue_beside_dark_tissue_is_kept() {
    let mut image = glass(100);
    draw(&mut image, 10, 10, 50, 50, Rgb([120, 60, 130]));
    draw(&mut image, 60, 10, 30, 50, PALE); // saturation 38
    let found = mask(&image, &TissueParams::default());
    assert!((found.share() - 0.4).abs() < 0.01, "{}", found.share());
    assert!(found.threshold() <= 32.0);
}

#[test]
fn the_methods_see_colour_density_and_texture() {
    let with = |method| TissueParams { method, ..TissueParams::default() };
    let methods = [TissueMethod::Saturation, TissueMethod::OpticalDensity, TissueMethod::Entropy];
    let shares = |image: &RgbImage| methods.map(|method| mask(image, &with(method)).share());
    let close = |got: f64, expected: f64| assert!((got - expected).abs() < 0.02, "{got} for {expected}");
    // Faint grey tissue: no colour and no texture, an optical density of 0.16.
    let mut grey = glass(100);
    draw(&mut grey, 20, 20, 40, 50, Rgb([177, 175, 176]));
    let [colour, density, _] = shares(&grey);
    assert_eq!(colour, 0.0);
    close(density, 0.2);
    // Fat: thin walls around empty cells of 8 px. Only the entropy takes cells and walls together.
    let mut fat = glass(100);
    for i in 0..8 {
        draw(&mut fat, 20, 20 + i * 8, 58, 1, PALE);
        draw(&mut fat, 20 + i * 8, 20, 1, 58, PALE);
        draw(&mut fat, 20, 21 + i * 8, 58, 1, EOSIN);
        draw(&mut fat, 21 + i * 8, 20, 1, 58, EOSIN);
    }
    let [colour, _, texture] = shares(&fat);
    assert!(colour < 0.2, "{colour}");
    close(texture, 0.58 * 0.58);
    // None of them takes blank glass, nor the noise of a camera and a corner that lies in the shade.
    assert_eq!(shares(&glass(100)), [0.0; 3]);
    let noisy = RgbImage::from_fn(100, 100, |x, y| {
        let noise = ((x * 7919 + y * 104_729) % 31 % 7) as i32 - 3;
        Rgb(GLASS.0.map(|value| (i32::from(value) + noise - ((x + y) / 8) as i32) as u8))
    });
    assert_eq!(shares(&noisy), [0.0; 3]);
    // White around a scan whose glass is grey.
    let mut padded = glass(100);
    draw(&mut padded, 0, 70, 100, 30, Rgb([254, 255, 254]));
    assert_eq!(shares(&padded), [0.0; 3]);
    // Two scans of unlike light beside each other, and dust.
    let mut seam = glass(100);
    draw(&mut seam, 0, 50, 100, 50, Rgb(GLASS.0.map(|value| value - 15)));
    draw(&mut seam, 20, 20, 6, 6, EOSIN);
    assert_eq!(shares(&seam), [0.0; 3]);
}

/// The strands of fat at both ends of a real biopsy, as shares of its width and height.
#[test]
fn strands_of_fat_are_tissue_by_their_texture() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    let Ok(slide) = Slide::open(root.join("slides_derived/bcnb_351899_Npos3_aperio240_noMPP.svs")) else {
        eprintln!("skipped: no slides_derived beside the repository (shared/data)");
        return;
    };
    let shares = [TissueMethod::Saturation, TissueMethod::Entropy].map(|method| {
        let params = TissueParams { method, ..TissueParams::default() };
        let overview = Overview::read(&slide, Mpp(0.5), &params).unwrap().image;
        let mask = TissueMask::from_rgb(&overview, slide.size(), Mpp(0.5), &params).unwrap();
        assert!(mask.share() < 0.12, "{}", mask.share());
        let Size { width, height } = mask.size();
        [([0.73, 0.79], [0.0, 0.19]), ([0.19, 0.235], [0.885, 0.915])].map(|(x, y)| {
            let [left, right] = x.map(|share| (share * f64::from(width)) as u32);
            let [top, bottom] = y.map(|share| (share * f64::from(height)) as u32);
            let inside = (top..bottom).flat_map(|y| (left..right).map(move |x| (x, y)));
            let tissue = inside.clone().filter(|&(x, y)| mask.data()[(y * width + x) as usize]).count();
            tissue as f64 / inside.count() as f64
        })
    });
    assert!(shares[0].iter().all(|&share| share < 0.1) && shares[1].iter().all(|&share| share > 0.6), "{shares:.3?}");
}

#[test]
fn blank_slides_stay_empty_and_say_why() {
    assert_eq!(mask(&glass(80), &TissueParams::default()).empty_reason(), Some(EmptyReason::Blank));
    let tinted = RgbImage::from_pixel(80, 80, Rgb([244, 241, 234]));
    assert_eq!(mask(&tinted, &TissueParams::default()).share(), 0.0);
    let dust = {
        let mut image = glass(80);
        draw(&mut image, 40, 40, 6, 6, EOSIN); // 36 * 64 µm² = 0.0023 mm²
        image
    };
    assert_eq!(mask(&dust, &TissueParams::default()).empty_reason(), Some(EmptyReason::OnlySpecks));
}

#[test]
fn fluorescence_has_no_tissue_but_a_black_frame_does_no_harm() {
    let mut dapi = RgbImage::from_pixel(100, 100, Rgb([0, 0, 14]));
    draw(&mut dapi, 10, 10, 40, 40, Rgb([0, 2, 230]));
    let found = mask(&dapi, &TissueParams::default());
    assert_eq!((found.share(), found.empty_reason()), (0.0, Some(EmptyReason::DarkBackground)));
    let mut framed = RgbImage::from_pixel(100, 100, Rgb([0, 0, 0]));
    draw(&mut framed, 0, 0, 60, 60, GLASS);
    draw(&mut framed, 10, 10, 20, 20, EOSIN);
    let found = mask(&framed, &TissueParams { smooth: 1, ..TissueParams::default() });
    assert!((found.share() - 0.04).abs() < 1e-9, "{}", found.share());
}

#[test]
fn pen_ink_is_no_tissue() {
    let mut image = glass(100);
    draw(&mut image, 10, 10, 20, 80, Rgb([40, 150, 70]));
    draw(&mut image, 40, 10, 20, 80, Rgb([30, 70, 190]));
    draw(&mut image, 70, 10, 20, 80, Rgb([150, 100, 60])); // DAB
    let found = mask(&image, &TissueParams::default());
    let mut red = image.clone();
    draw(&mut red, 70, 10, 20, 80, Rgb([215, 40, 60]));
    assert_eq!(mask(&red, &TissueParams::default()).share(), 0.0);
    assert!((found.share() - 0.16).abs() < 0.01, "{}", found.share());
    let all = mask(&image, &TissueParams { max_green_over_red: 255, ..TissueParams::default() });
    assert!((all.share() - 0.48).abs() < 0.01, "{}", all.share());
}

#[test]
fn an_image_of_nothing_but_tissue_is_all_tissue() {
    let image = RgbImage::from_fn(64, 64, |x, y| if (x / 8 + y / 8) % 2 == 0 { EOSIN } else { Rgb([130, 70, 140]) });
    assert_eq!(mask(&image, &TissueParams::default()).share(), 1.0);
}

/// Light that fades dims glass and tissue alike, and the mask stays what it was. On real slides.
#[test]
fn dimmer_light_leaves_the_mask_as_it_was() {
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data");
    for (file, mpp) in [
        ("slides_derived/bcnb_351899_Npos3_aperio240_noMPP.svs", 0.5),
        ("slides_derived/bcnb_590960_Npos1-2_panda512.tiff", 0.4863),
        ("slides/CMU-1-Small-Region.svs", 0.499),
    ] {
        let Ok(slide) = Slide::open(root.join(file)) else {
            eprintln!("skipped: no {file} beside the repository (shared/data)");
            continue;
        };
        for method in [TissueMethod::Saturation, TissueMethod::OpticalDensity, TissueMethod::Entropy] {
            let params = TissueParams { method, ..TissueParams::default() };
            let overview = Overview::read(&slide, Mpp(mpp), &params).unwrap().image;
            let share = |light: f64| {
                let mut dimmed = overview.clone();
                dimmed.iter_mut().for_each(|value| *value = (f64::from(*value) * light) as u8);
                TissueMask::from_rgb(&dimmed, slide.size(), Mpp(mpp), &params).unwrap().share()
            };
            let shares = [1.0, 0.93, 0.85].map(share);
            println!("{file}, {method:?}: {shares:.3?} of it is tissue");
            let tolerance = if method == TissueMethod::Entropy { 0.02 } else { 0.002 };
            assert!(
                shares.iter().all(|dimmed| (dimmed - shares[0]).abs() < tolerance && (0.05..0.5).contains(dimmed)),
                "{file} {method:?}: {shares:.4?}"
            );
        }
    }
}

#[test]
fn holes_pieces_and_dilation_follow_their_areas() {
    let mut image = glass(120);
    draw(&mut image, 10, 10, 80, 80, EOSIN);
    draw(&mut image, 20, 20, 10, 10, GLASS); // 100 * 64 µm² = 0.0064 mm²: filled
    draw(&mut image, 40, 40, 40, 40, GLASS); // 0.1024 mm²: stays
    draw(&mut image, 100, 100, 12, 12, EOSIN); // 0.0092 mm²: removed
    let params = TissueParams { smooth: 1, ..TissueParams::default() };
    let pixels = |params: &TissueParams| mask(&image, params).data().iter().filter(|&&t| t).count();
    assert_eq!(pixels(&params), 6400 - 1600);
    assert_eq!(pixels(&TissueParams { max_hole_mm2: 0.0, ..params.clone() }), 6400 - 1600 - 100);
    assert_eq!(pixels(&TissueParams { max_hole_mm2: 0.2, ..params.clone() }), 6400);
    assert_eq!(pixels(&TissueParams { min_piece_mm2: 0.009, ..params.clone() }), 6400 - 1600 + 144);
    // 16 µm are 2 pixels on every side: 84² outside, 36² left of the hole.
    assert_eq!(pixels(&TissueParams { dilate_um: 16.0, ..params }), 84 * 84 - 36 * 36);
}

#[test]
fn the_mask_scale_is_exact_and_bounded() {
    let params = TissueParams::default();
    assert_eq!(mask_size(Size::new(40_000, 20_000), Mpp(0.5), &params), Size::new(2500, 1250));
    assert_eq!(mask_size(Size::new(400_000, 100_000), Mpp(0.25), &params), Size::new(4096, 1024));
    assert_eq!(mask_size(Size::new(300, 3), Mpp(20.0), &params), Size::new(300, 3));
    assert_eq!(mask_size(Size::new(5, 1), Mpp(0.1), &params), Size::new(1, 1));
    let mask = TissueMask::from_pixels(Size::new(3, 2), Size::new(100, 50), vec![true; 6]).unwrap();
    assert_eq!(mask.scale(), (100.0 / 3.0, 25.0));
}

#[test]
fn senseless_rules_are_refused_by_name() {
    let message = |params: TissueParams| params.check().unwrap_err().to_string();
    let with = TissueParams::default;
    assert!(message(TissueParams { mpp: 0.0, ..with() }).contains("tissue.mpp"));
    assert!(message(TissueParams { smooth: 4, ..with() }).contains("tissue.smooth"));
    assert!(message(TissueParams { min_saturation: 90, ..with() }).contains("tissue.min_saturation"));
    assert!(message(TissueParams { max_entropy: 6.0, ..with() }).contains("tissue.min_entropy"));
    assert!(message(TissueParams { min_optical_density: 1.0, ..with() }).contains("above tissue.max_optical"));
    assert!(message(TissueParams { dilate_um: -1.0, ..with() }).contains("tissue.dilate_um"));
}
