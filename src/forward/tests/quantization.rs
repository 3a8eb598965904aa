//! What configurations say of quantization.

use super::*;

fn quantized(fields: Value) -> Quantization {
    resolve("llama", fields).quantization.unwrap()
}

#[test]
fn quantization_is_read_as_mlx_writes_it() {
    let format = |mode, bits, group| MlxFormat { mode, bits, group };
    let default = |fields: Value| match quantized(fields) {
        Quantization::Mlx(mlx) => mlx.default,
        other => panic!("{other:?}"),
    };
    let affine = MlxMode::Affine;
    assert_eq!(resolve("llama", json!({})).quantization, None);
    assert_eq!(resolve("llama", json!({"quantization": null})).quantization, None);
    assert_eq!(default(json!({"quantization": {"bits": 3, "group_size": 128}})), format(affine, 3, 128));
    assert_eq!(default(json!({"quantization": {"bits": 8}})), format(affine, 8, 64));
    for (name, mode, bits, group) in
        [("mxfp4", MlxMode::Mxfp4, 4, 32), ("mxfp8", MlxMode::Mxfp8, 8, 32), ("nvfp4", MlxMode::Nvfp4, 4, 16)]
    {
        assert_eq!(default(json!({"quantization": {"mode": name}})), format(mode, bits, group));
    }
    let both =
        json!({"quantization": {"bits": 4}, "quantization_config": {"quant_method": "awq", "bits": 4}});
    assert_eq!(default(both), format(affine, 4, 64));
    assert_eq!(default(json!({"quantization_config": {"bits": 6}})), format(affine, 6, 64));
    assert_eq!(
        default(json!({"quantization_config": {"quant_method": "mxfp4"}})),
        format(MlxMode::Mxfp4, 4, 32)
    );
    let modules = json!({"bits": 4, "group_size": 32, "lm_head": false, "model.embed_tokens": true,
        "model.layers.0.mlp.up_proj": {"bits": 8}, "model.layers.1.mlp.up_proj": {"mode": "nvfp4"}});
    let Quantization::Mlx(mlx) = quantized(json!({ "quantization": modules })) else { panic!() };
    let expected = [
        ("lm_head", None),
        ("model.embed_tokens", Some(format(affine, 4, 32))),
        ("model.layers.0.mlp.up_proj", Some(format(affine, 8, 64))),
        ("model.layers.1.mlp.up_proj", Some(format(MlxMode::Nvfp4, 4, 16))),
    ];
    assert_eq!(mlx.modules, expected.map(|(path, of)| (path.to_owned(), of)).into());
}

#[test]
fn gptq_and_awq_are_read_as_their_writers_have_it() {
    let gptq = |fields: Value| {
        quantized(json!({ "quantization_config": with(json!({"quant_method": "gptq"}), fields) }))
    };
    assert_eq!(
        gptq(json!({"bits": 4, "group_size": -1, "desc_act": true})),
        Quantization::Gptq { v2: false }
    );
    assert_eq!(gptq(json!({"bits": 8, "checkpoint_format": "gptq_v2"})), Quantization::Gptq { v2: true });
    let awq =
        json!({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "GEMM", "zero_point": true});
    assert_eq!(quantized(json!({ "quantization_config": awq })), Quantization::Awq);
    let nested = json!({"text_config": {"quantization_config": {"quant_method": "awq"}}});
    assert_eq!(quantized(nested), Quantization::Awq);
}

#[test]
fn published_forms_are_read_as_their_writers_have_them() {
    let of = |fields: Value| match quantized(json!({ "quantization_config": fields })) {
        Quantization::Published(of) => of,
        other => panic!("{other:?}"),
    };
    let form = |by, block, powers| Published { by, block, powers };
    let (ours, theirs, nvidia) = (Publisher::Transformers, Publisher::CompressedTensors, Publisher::ModelOpt);
    let fp8 =
        |fields: Value| of(with(json!({"quant_method": "fp8", "activation_scheme": "dynamic"}), fields));
    assert_eq!(fp8(json!({})), form(ours, Some([128, 128]), false));
    assert_eq!(
        fp8(json!({"weight_block_size": [32, 64], "fmt": "e4m3", "scale_fmt": "ue8m0"})),
        form(ours, Some([32, 64]), true)
    );
    assert_eq!(fp8(json!({"weight_block_size": null})), form(ours, None, false));

    let weights =
        json!({"num_bits": 4, "type": "int", "strategy": "group", "group_size": 32, "symmetric": false});
    let group = json!({"targets": ["Linear"], "weights": weights, "input_activations": null});
    let packed = json!({"quant_method": "compressed-tensors", "format": "pack-quantized", "ignore": ["lm_head"],
        "config_groups": {"group_0": group}, "kv_cache_scheme": null, "sparsity_config": {}, "transform_config": {}});
    assert_eq!(of(packed), form(theirs, None, false));
    let weights = json!({"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [128, 128]});
    let blocks = json!({"quant_method": "compressed-tensors", "format": "float-quantized",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}}});
    assert_eq!(of(blocks), form(theirs, Some([128, 128]), false));

    let plain =
        json!({"quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 16, "ignore": ["lm_head"]});
    assert_eq!(of(plain), form(nvidia, None, false));
    let nested = json!({"quant_method": "modelopt", "quantization": {"quant_algo": "FP8_PB_WO"}});
    assert_eq!(of(nested), form(nvidia, Some([128, 128]), false));
}

#[test]
fn published_forms_that_change_values_are_refused() {
    let foreign = |method: &str, fields: Value| json!({ "quantization_config": with(json!({ "quant_method": method }), fields) });
    refused(foreign("fp8", json!({"fmt": "e5m2"})), "quantization_config.fmt is \"e5m2\", expected e4m3 or");
    refused(
        foreign("fp8", json!({"expert_dtype": "fp4"})),
        "quantization_config.expert_dtype is \"fp4\", expected fp8",
    );
    refused(
        foreign("fp8", json!({"weight_block_size": [128]})),
        "quantization_config.weight_block_size is a list of 1, expected two integers",
    );
    let packed = |fields: Value| {
        let groups = json!({"group_0": {"weights": {"num_bits": 4, "type": "int"}}});
        let whole = json!({"format": "pack-quantized", "config_groups": groups});
        foreign("compressed-tensors", with(whole, fields))
    };
    refused(
        packed(json!({"format": "marlin-24"})),
        "quantization_config.format is \"marlin-24\", expected pack-quantized, int-",
    );
    refused(
        packed(json!({"format": null})),
        "quantization_config.format is missing, expected pack-quantized",
    );
    refused(
        packed(json!({"config_groups": {}})),
        "quantization_config.config_groups is missing, expected an object of groups",
    );
    refused(
        packed(json!({"transform_config": {"config_groups": {}}})),
        "quantization_config.transform_config is an object of 1 members, expected nothing",
    );
    refused(
        packed(json!({"sparsity_config": {"format": "sparse-24-bitmask"}})),
        "sparsity_config.format is \"sparse-24-bitmask\", expected dense",
    );
    let weights = |weights: Value| packed(json!({"config_groups": {"group_0": {"weights": weights}}}));
    refused(weights(json!({"num_bits": 7})), "weights.num_bits is 7, expected 2, 3, 4, 5, 6 or 8");
    refused(weights(json!({"num_bits": 6, "type": "float"})), "weights.num_bits is 6, expected 4 or 8");
    refused(weights(json!({"strategy": "token"})), "weights.strategy is \"token\", expected tensor, channel");
    for algorithm in ["NVFP4_AWQ", "W4A8_AWQ", "NVFP4_SVD"] {
        let expected = format!("quantization_config.quant_algo is \"{algorithm}\", expected FP8, ");
        refused(foreign("modelopt", json!({ "quant_algo": algorithm })), &expected);
    }
    refused(
        foreign("modelopt", json!({"quant_algo": "NVFP4", "pre_quant_scale": true})),
        "quantization_config.pre_quant_scale is true, expected false",
    );
}

#[test]
fn hostile_quantizations_are_refused() {
    let mlx = |fields: Value| json!({ "quantization": fields });
    refused(json!({"quantization": 4}), "quantization is 4, expected an object");
    refused(
        mlx(json!({"bits": 7})),
        "quantization.bits is 7, expected 2, 3, 4, 5, 6, 8, as mode affine has it",
    );
    refused(mlx(json!({"bits": -4})), "quantization.bits is -4, expected 2, 3");
    refused(mlx(json!({"bits": 4.0})), "quantization.bits is 4.0, expected 2, 3");
    refused(mlx(json!({"bits": "4"})), "quantization.bits is \"4\", expected 2, 3");
    refused(
        mlx(json!({"group_size": 0})),
        "quantization.group_size is 0, expected 32, 64, 128, as mode affine",
    );
    refused(mlx(json!({"group_size": 48})), "quantization.group_size is 48, expected 32, 64, 128");
    refused(
        mlx(json!({"mode": "mxfp4", "bits": 8})),
        "quantization.bits is 8, expected 4, as mode mxfp4 has it",
    );
    refused(
        mlx(json!({"mode": "nf4"})),
        "quantization.mode is \"nf4\", expected affine, mxfp4, mxfp8 or nvfp4",
    );
    let module = json!({"bits": 4, "model.layers.3.mlp.up_proj": {"bits": 1}});
    refused(mlx(module), "quantization.model.layers.3.mlp.up_proj.bits is 1, expected 2, 3, 4, 5, 6, 8");

    let foreign = |fields: Value| json!({ "quantization_config": fields });
    let method = |method: &str, fields: Value| foreign(with(json!({ "quant_method": method }), fields));
    for name in ["bitnet", "bitsandbytes", "quark"] {
        refused(
            method(name, json!({"bits": 4})),
            &format!(
                "quantization_config.quant_method is \"{name}\", expected gptq, awq, fp8, compressed-tensors, modelopt"
            ),
        );
    }
    refused(method("gptq", json!({"bits": 3})), "quantization_config.bits is 3, expected 4 or 8");
    refused(method("gptq", json!({"group_size": 0})), "quantization_config.group_size is 0, expected -1, or");
    refused(
        method("gptq", json!({"group_size": -2})),
        "quantization_config.group_size is -2, expected -1, or",
    );
    refused(
        method("gptq", json!({"checkpoint_format": "marlin"})),
        "quantization_config.checkpoint_format is \"marlin\", expected gptq or gptq_v2",
    );
    refused(method("awq", json!({"bits": 8})), "quantization_config.bits is 8, expected 4");
    refused(
        method("awq", json!({"version": "gemv"})),
        "quantization_config.version is \"gemv\", expected gemm",
    );
}
