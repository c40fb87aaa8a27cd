"""PEFT's methods and the options of each, by type: what a config is checked against before torch is imported.

Made by `python -m tests.config.peft_table`; a test compares it with the installed PEFT.
"""

from typing import Any, Literal

VERSION = "0.21.2"

# fmt: off
PeftMethod = Literal[
    "adalora", "adamss", "adaption_prompt", "beft", "boft", "c3a", "cartridge", "cpt", "deft", "delora", "fourierft",
    "frod", "glora", "gralora", "hira", "hra", "ia3", "lily", "ln_tuning", "loha", "lokr", "miss",
    "multitask_prompt_tuning", "oft", "osf", "p_tuning", "peanut", "poly", "prefix_tuning", "prompt_tuning", "psoft",
    "pvera", "randlora", "road", "shadow", "shira", "supertuning", "tinylora", "trainable_tokens", "unilora", "vblora",
    "vera", "waveft", "xlora",
]
"""Every method of PEFT but LoRA, which has a section of its own."""

OPTIONS: dict[str, dict[str, Any]] = {
    "adalora": {
        "r": int, "exclude_modules": list[str] | str | None, "lora_alpha": int, "lora_dropout": float,
        "fan_in_fan_out": bool, "bias": Literal["none", "all", "lora_only"], "use_rslora": bool,
        "init_lora_weights": bool | Literal["gaussian", "eva", "olora", "pissa", "pissa_niter_[number of iters]", "corda", "loftq", "orthogonal", "mica"],
        "layers_to_transform": list[int] | int | None, "layers_pattern": list[str] | str | None,
        "rank_pattern": dict[str, Any] | None, "alpha_pattern": dict[str, Any] | None,
        "megatron_config": dict[str, Any] | None, "megatron_core": str | None,
        "trainable_token_indices": list[int] | dict[str, Any] | None, "loftq_config": dict[str, Any], "use_dora": bool,
        "velora_config": dict[str, Any] | None, "alora_invocation_tokens": list[int] | None, "use_qalora": bool,
        "qalora_group_size": int, "layer_replication": list[tuple[int, int]] | None, "lora_bias": bool,
        "target_parameters": list[str] | None, "ensure_weight_tying": bool, "target_r": int, "init_r": int,
        "tinit": int, "tfinal": int, "deltaT": int, "beta1": float, "beta2": float, "orth_reg_weight": float,
        "total_step": int | None,
    },
    "adamss": {
        "r": int, "num_subspaces": int, "subspace_rank": int, "init_weights": Literal["orthogonal"] | None,
        "layers_to_transform": list[int] | int | None, "layers_pattern": list[str] | str | None, "use_asa": bool,
        "asa_target_subspaces": int, "init_warmup": int, "final_warmup": int, "mask_interval": int,
        "asa_importance_beta": float, "asa_uncertainty_beta": float, "asa_schedule_exponent": float,
        "use_dynamic_rank": bool, "svd_threshold": float, "random_seed": int,
    },
    "adaption_prompt": {
        "adapter_len": int | None, "adapter_layers": int | None,
    },
    "beft": {
        "init_weights": bool,
    },
    "boft": {
        "boft_block_size": int, "boft_block_num": int, "boft_n_butterfly_factor": int,
        "exclude_modules": list[str] | str | None, "boft_dropout": float, "fan_in_fan_out": bool, "bias": str,
        "init_weights": bool, "layers_to_transform": list[int] | int | None, "layers_pattern": list[str] | str | None,
    },
    "c3a": {
        "block_size": int, "bias": str, "layers_to_transform": list[int] | int | None,
        "layers_pattern": list[str] | str | None, "block_size_pattern": dict[str, Any] | None,
        "init_weights": bool | Literal["gaussian", "kaiming_uniform", "xavier_uniform"] | None,
    },
    "cartridge": {
        "num_virtual_tokens": int | None, "token_dim": int | None, "num_transformer_submodules": int | None,
        "num_attention_heads": int | None, "num_layers": int | None, "num_frozen_tokens": int,
    },
    "cpt": {
        "num_virtual_tokens": int | None, "token_dim": int | None, "num_transformer_submodules": int | None,
        "num_attention_heads": int | None, "num_layers": int | None, "cpt_token_ids": list[int] | None,
        "cpt_mask": list[int] | None, "cpt_tokens_type_mask": list[int] | None,
        "opt_weighted_loss_type": Literal["none", "decay"] | None, "opt_loss_decay_factor": float | None,
        "opt_projection_epsilon": float | None, "opt_projection_format_epsilon": float | None,
        "tokenizer_name_or_path": str | None,
    },
    "deft": {
        "r": int, "exclude_modules": list[str] | str | None, "decomposition_method": Literal["relu", "qr"],
        "init_scale": float, "alpha": int | None, "para": bool, "fan_in_fan_out": bool, "deft_dropout": float,
        "init_weights": bool, "layers_to_transform": list[int] | int | None, "layers_pattern": list[str] | str | None,
        "bias": str,
    },
    "delora": {
        "r": int, "delora_lambda": int, "module_dropout": float, "exclude_modules": list[str] | str | None,
        "bias": Literal["none", "all", "delora_only"], "init_weights": bool,
        "layers_to_transform": list[int] | int | None, "layers_pattern": list[str] | str | None,
        "rank_pattern": dict[str, Any] | None, "lambda_pattern": dict[str, Any] | None,
    },
    "fourierft": {
        "n_frequency": int, "scaling": float, "random_loc_seed": int | None, "fan_in_fan_out": bool,
        "exclude_modules": list[str] | str | None, "bias": str, "layers_to_transform": list[int] | int | None,
        "layers_pattern": list[str] | str | None, "n_frequency_pattern": dict[str, Any] | None, "init_weights": bool,
    },
    "frod": {
        "projection_prng_key": int, "save_projection": bool, "frod_dropout": float, "fan_in_fan_out": bool, "bias": str,
        "init_weights": bool, "layers_to_transform": list[int] | int | None, "layers_pattern": list[str] | str | None,
        "sparse_rate": float, "regularization_alpha": float, "progressbar": bool, "runtime_offload_base_weight": bool,
    },
    "glora": {
        "r": int, "bias": str, "config_A_B": Literal["lora", "vector", "constant", "none"],
        "config_C": Literal["lora", "vector", "none"], "config_D_E": Literal["vector", "constant", "none"],
        "init_weights": bool,
    },
    "gralora": {
        "r": int, "hybrid_r": int, "alpha": int, "gralora_dropout": float, "gralora_k": int, "fan_in_fan_out": bool,
        "bias": str, "init_weights": bool, "layers_to_transform": list[int] | int | None, "layers_pattern": str | None,
    },
    "hira": {
        "r": int, "exclude_modules": list[str] | str | None, "hira_dropout": float, "fan_in_fan_out": bool,
        "init_weights": bool | Literal["gaussian"] | None, "layers_to_transform": list[int] | int | None,
        "layers_pattern": list[str] | str | None, "rank_pattern": dict[str, Any] | None,
    },
    "hra": {
        "r": int, "apply_GS": bool, "exclude_modules": list[str] | str | None, "init_weights": bool,
        "layers_to_transform": list[int] | int | None, "layers_pattern": list[str] | str | None, "bias": str,
    },
    "ia3": {
        "exclude_modules": list[str] | str | None, "feedforward_modules": list[str] | str | None,
        "fan_in_fan_out": bool, "init_ia3_weights": bool,
    },
    "lily": {
        "r": int, "stride_A": int, "num_B": int, "scaling": float, "exclude_modules": list[str] | str | None,
        "layers_to_transform": list[int] | int | None, "layers_pattern": list[str] | str | None, "init_weights": bool,
    },
    "ln_tuning": {
        "exclude_modules": list[str] | str | None,
    },
    "loha": {
        "rank_pattern": dict[str, Any] | None, "alpha_pattern": dict[str, Any] | None, "r": int, "alpha": int,
        "rank_dropout": float, "module_dropout": float, "use_effective_conv2d": bool,
        "exclude_modules": list[str] | str | None, "init_weights": bool, "layers_to_transform": list[int] | int | None,
        "layers_pattern": list[str] | str | None,
    },
    "lokr": {
        "rank_pattern": dict[str, Any] | None, "alpha_pattern": dict[str, Any] | None, "r": int, "alpha": int,
        "rank_dropout": float, "module_dropout": float, "use_effective_conv2d": bool, "decompose_both": bool,
        "decompose_factor": int, "rank_dropout_scale": bool, "exclude_modules": list[str] | str | None,
        "init_weights": bool | Literal["lycoris"], "layers_to_transform": list[int] | int | None,
        "layers_pattern": list[str] | str | None,
    },
    "lora": {
        "r": int, "exclude_modules": list[str] | str | None, "lora_alpha": int, "lora_dropout": float,
        "fan_in_fan_out": bool, "bias": Literal["none", "all", "lora_only"], "use_rslora": bool,
        "init_lora_weights": bool | Literal["gaussian", "eva", "olora", "pissa", "pissa_niter_[number of iters]", "corda", "loftq", "orthogonal", "mica"],
        "layers_to_transform": list[int] | int | None, "layers_pattern": list[str] | str | None,
        "rank_pattern": dict[str, Any] | None, "alpha_pattern": dict[str, Any] | None,
        "megatron_config": dict[str, Any] | None, "megatron_core": str | None,
        "trainable_token_indices": list[int] | dict[str, Any] | None, "loftq_config": dict[str, Any], "use_dora": bool,
        "velora_config": dict[str, Any] | None, "alora_invocation_tokens": list[int] | None, "use_qalora": bool,
        "qalora_group_size": int, "layer_replication": list[tuple[int, int]] | None, "lora_bias": bool,
        "target_parameters": list[str] | None, "ensure_weight_tying": bool,
    },
    "miss": {
        "r": int, "miss_dropout": float, "mini_r": int, "exclude_modules": list[str] | str | None,
        "init_weights": bool | Literal["bat", "mini"], "layers_to_transform": list[int] | int | None,
        "layers_pattern": str | None, "bias": str,
    },
    "multitask_prompt_tuning": {
        "num_virtual_tokens": int | None, "token_dim": int | None, "num_transformer_submodules": int | None,
        "num_attention_heads": int | None, "num_layers": int | None,
        "prompt_tuning_init": Literal["TEXT", "RANDOM", "AVERAGE_SOURCE_TASKS", "EXACT_SOURCE_TASK", "ONLY_SOURCE_SHARED"],
        "prompt_tuning_init_text": str | None, "tokenizer_name_or_path": str | None,
        "tokenizer_kwargs": dict[str, Any] | None, "prompt_tuning_init_state_dict_path": str | None,
        "prompt_tuning_init_task": int | None, "num_ranks": int | None, "num_tasks": int | None,
    },
    "oft": {
        "r": int, "oft_block_size": int, "module_dropout": float, "fan_in_fan_out": bool,
        "bias": Literal["none", "all", "oft_only"], "exclude_modules": list[str] | str | None, "init_weights": bool,
        "layers_to_transform": list[int] | int | None, "layers_pattern": list[str] | str | None, "coft": bool,
        "eps": float, "block_share": bool, "use_cayley_neumann": bool, "num_cayley_neumann_terms": int,
    },
    "osf": {
        "effective_rank": int | float | None, "rank_pattern": dict[str, Any] | None, "init_weights": bool | None,
        "target_svd_config": dict[str, Any] | None,
    },
    "p_tuning": {
        "num_virtual_tokens": int | None, "token_dim": int | None, "num_transformer_submodules": int | None,
        "num_attention_heads": int | None, "num_layers": int | None,
        "encoder_reparameterization_type": Literal["MLP", "LSTM"], "encoder_hidden_size": int | None,
        "encoder_num_layers": int, "encoder_dropout": float,
    },
    "peanut": {
        "r": int, "depth": int, "act_fn": str, "scaling": float, "exclude_modules": list[str] | str | None,
        "layers_to_transform": list[int] | int | None, "layers_pattern": list[str] | str | None, "init_weights": bool,
    },
    "poly": {
        "r": int, "exclude_modules": list[str] | str | None, "init_weights": bool, "poly_type": Literal["poly"],
        "n_tasks": int, "n_skills": int, "n_splits": int,
    },
    "prefix_tuning": {
        "num_virtual_tokens": int | None, "token_dim": int | None, "num_transformer_submodules": int | None,
        "num_attention_heads": int | None, "num_layers": int | None, "init_weights": Literal["zero"] | None,
        "encoder_hidden_size": int | None, "prefix_projection": bool,
    },
    "prompt_tuning": {
        "num_virtual_tokens": int | None, "token_dim": int | None, "num_transformer_submodules": int | None,
        "num_attention_heads": int | None, "num_layers": int | None,
        "prompt_tuning_init": Literal["TEXT", "SAMPLE_VOCAB", "RANDOM"], "prompt_tuning_init_text": str | None,
        "tokenizer_name_or_path": str | None, "tokenizer_kwargs": dict[str, Any] | None,
    },
    "psoft": {
        "r": int, "exclude_modules": list[str] | str | None, "psoft_alpha": int, "psoft_dropout": float,
        "fan_in_fan_out": bool, "ab_svd_init": Literal["psoft_init", "pissa_init"],
        "psoft_svd": Literal["full", "lowrank"], "psoft_svd_lowrank_niter": int, "random_seed": int, "psoft_orth": bool,
        "psoft_mag_b": bool, "psoft_mag_a": bool, "use_cayley_neumann": bool, "num_cayley_neumann_terms": int,
        "cayley_neumann_eps": float | None, "init_weights": bool, "layers_to_transform": list[int] | int | None,
        "layers_pattern": list[str] | str | None,
    },
    "pvera": {
        "r": int, "projection_prng_key": int, "save_projection": bool, "pvera_dropout": float, "d_initial": float,
        "fan_in_fan_out": bool, "bias": str, "init_weights": bool, "layers_to_transform": list[int] | int | None,
        "layers_pattern": list[str] | str | None, "sample_at_inference": bool, "generator_seed": int | None,
    },
    "randlora": {
        "r": int, "projection_prng_key": int, "save_projection": bool, "sparse": bool, "very_sparse": bool,
        "randlora_dropout": float, "fan_in_fan_out": bool, "randlora_alpha": int, "bias": str, "init_weights": bool,
        "layers_to_transform": list[int] | int | None, "layers_pattern": str | None,
    },
    "road": {
        "variant": str | Literal["road_1", "road_2", "road_4"], "group_size": int, "init_weights": bool,
    },
    "shadow": {
        "exclude_modules": list[str] | str | None, "r": int, "shadow_alpha": float, "shadow_dropout": float,
        "init_weights": bool, "shadow_model": str, "shadow_num_hidden_layers": int | None,
        "shadow_hidden_size": int | None, "shadow_num_attention_heads": int | None,
        "shadow_intermediate_size": int | None, "share_embeddings": bool, "update_hidden_size": int | None,
        "auxiliary_loss_weight": float, "layers_to_transform": list[int] | int | None,
        "layers_pattern": list[str] | str | None,
    },
    "shira": {
        "r": int, "mask_type": Literal["random"], "random_seed": int | None, "fan_in_fan_out": bool,
        "init_weights": bool,
    },
    "supertuning": {
        "sparsity": float, "select_top": bool, "r": int | None, "lora_alpha": float | None, "lora_dropout": float,
        "init_weights": bool, "save_precomputed_indices": bool,
    },
    "tinylora": {
        "r": int, "u": int, "weight_tying": float, "projection_seed": int, "save_projection": bool,
        "init_v_bound": float, "tinylora_dropout": float, "fan_in_fan_out": bool, "bias": str,
        "init_weights": bool | str, "layers_to_transform": list[int] | int | None,
        "layers_pattern": list[str] | str | None,
    },
    "trainable_tokens": {
        "token_indices": list[int], "init_weights": bool,
    },
    "unilora": {
        "r": int, "proj_seed": int, "theta_d_length": int, "unilora_dropout": float, "fan_in_fan_out": bool,
        "bias": str, "init_theta_d_bound": float, "init_weights": bool, "save_indices": bool,
        "layers_to_transform": list[int] | int | None, "layers_pattern": list[str] | str | None,
    },
    "vblora": {
        "r": int, "num_vectors": int, "vector_length": int, "topk": int, "exclude_modules": list[str] | str | None,
        "save_only_topk_weights": bool, "vblora_dropout": float, "fan_in_fan_out": bool, "bias": str,
        "init_vector_bank_bound": float, "init_logits_std": float, "layers_to_transform": list[int] | int | None,
        "layers_pattern": list[str] | str | None,
    },
    "vera": {
        "r": int, "projection_prng_key": int, "save_projection": bool, "vera_dropout": float, "d_initial": float,
        "fan_in_fan_out": bool, "bias": str, "init_weights": bool, "layers_to_transform": list[int] | int | None,
        "layers_pattern": list[str] | str | None,
    },
    "waveft": {
        "n_frequency": int, "scaling": float, "wavelet_family": str, "use_idwt": bool, "random_loc_seed": int,
        "fan_in_fan_out": bool, "exclude_modules": list[str] | str | None, "bias": str,
        "layers_to_transform": list[int] | int | None, "layers_pattern": list[str] | str | None,
        "n_frequency_pattern": dict[str, Any] | None, "proportional_parameters": bool, "init_weights": bool,
    },
    "xlora": {
        "hidden_size": int | None, "adapters": dict[str, Any] | None, "enable_softmax": bool,
        "enable_softmax_topk": bool, "layerwise_scalings": bool, "xlora_depth": int, "xlora_size": int,
        "xlora_dropout_p": float, "use_trainable_adapters": bool, "softmax_temperature": float,
        "top_k_lora": int | None, "scaling_pass_value": float, "global_scaling_weight": float,
    },
}
"""By method: what PEFT's config class of it takes, besides the targets and the modules to save."""
