use super::*;

fn shown(network: &Network) -> Shown {
    let Network { patch, dim, depth, hidden, mlp, registers, layer_scale, qkv_bias, pre_norm, final_norm, .. } =
        *network;
    let rows = network.prefix_positions() + network.grid() * network.grid();
    Shown { patch, dim, depth, hidden, mlp, registers, layer_scale, qkv_bias, pre_norm, final_norm, rows }
}

fn of(preset: &str) -> ForeignEncoder {
    ForeignEncoder { preset: preset.into(), weights: "x.bin".into(), ..ForeignEncoder::default() }
}

#[test]
fn every_preset_is_complete_and_takes_its_own_file() {
    for preset in &PRESETS {
        let encoder = of(preset.name);
        encoder.check().unwrap();
        preset.network.check().unwrap();
        assert_eq!(encoder.network(&shown(&preset.network)).unwrap(), preset.network, "{}", preset.name);
        assert!(
            preset.crop <= preset.resize && (preset.crop as usize).is_multiple_of(preset.network.patch),
            "{}",
            preset.name
        );
        assert_eq!(PRESETS.iter().filter(|other| other.name == preset.name).count(), 1);
    }
    let width = |name: &str| preset(name).unwrap().network.embedding();
    assert_eq!(["phikon", "uni", "virchow", "virchow2", "h_optimus_0"].map(width), [768, 1024, 2560, 2560, 1536]);
}

#[test]
fn a_file_of_another_network_is_refused_with_every_difference() {
    let other = Network { dim: 384, heads: 6, ..preset("uni").unwrap().network };
    let error = of("uni").network(&shown(&other)).unwrap_err().to_string();
    assert!(error.contains("dim 384, not 1024"), "{error}");
    let pooled = ForeignEncoder {
        network: NetworkKeys { pooling: Some(Pooling::Cls), ..NetworkKeys::default() },
        ..of("virchow2")
    };
    let network = pooled.network(&shown(&preset("virchow2").unwrap().network)).unwrap();
    assert_eq!(network.embedding(), 1280);
    assert!(of("unni").check().unwrap_err().root_cause().to_string().contains("did you mean \"uni\""));
}

#[test]
fn without_a_preset_the_file_decides_and_what_it_hides_is_asked_for() {
    let any = ForeignEncoder { name: "mine".into(), weights: "x.bin".into(), ..ForeignEncoder::default() };
    for preset in &PRESETS {
        let network = any.network(&shown(&preset.network)).unwrap();
        assert_eq!(
            (network.positions, network.image_size, network.embedding()),
            (preset.network.positions, preset.network.image_size, preset.network.dim),
            "{}",
            preset.name
        );
    }
    let narrow = Shown { dim: 16, ..shown(&preset("uni").unwrap().network) };
    assert!(any.network(&narrow).unwrap_err().to_string().contains("heads of 64 channels"));
    // 9 rows behind 4 registers: 9 patches, or CLS, registers and 4 patches.
    let unclear = Shown { registers: 4, rows: 9, ..shown(&preset("uni").unwrap().network) };
    assert!(any.network(&unclear).unwrap_err().to_string().contains("network.positions"));
}

#[test]
fn names_that_would_be_taken_for_others_are_refused() {
    for name in ["", "dino", "gen_dino_full", "a/b", "..", "random"] {
        let encoder = ForeignEncoder { name: name.into(), weights: "x".into(), ..ForeignEncoder::default() };
        assert!(encoder.check().is_err(), "{name:?}");
    }
    assert!(ForeignEncoder { weights: PathBuf::new(), ..of("uni") }.check().is_err());
}
