#!/usr/bin/env python3
"""Train the small emoji text-to-image UNet (SDXL architecture) that stands beside emoji-flux and shares its VAE and text encoder.

Only the UNet is trained: pictures and captions are encoded once, by emoji-flux's VAE and by the text half of emoji-clip
(CLIPTextModelWithProjection, SDXL's second encoder; the first one is absent, as in SDXL's refiner).

  python diffopt/assets/emoji_sdxl/train.py --data data_small.npz --out OUT --minutes 6           # one H100
  python diffopt/assets/emoji_sdxl/train.py --data data_small.npz --out OUT --minutes 6 --init EARLIER/emoji_sdxl/unet
  python diffopt/assets/emoji_sdxl/train.py --data data_small.npz --out OUT --minutes 2 --steps 3 --batch 32 --limit 64 \
      --device cpu --compile none                                                                 # smoke test

`--minutes` is the whole run, loading and evaluation included. OUT gets emoji_sdxl/ (unet, scheduler, model_index.json: to be
copied over this folder, whose links lead to what is shared), log.json, and sheets of samples: generated left, real right.
"""
import argparse, copy, json, math, re, time
from pathlib import Path

import numpy as np
import torch

HERE = Path(__file__).resolve().parent
STYLES = ("noto", "twemoji")
SLOTS = 16          # caption variants per picture; a slot drawn at random is a caption
TOKENS = 32         # of CLIP, and its states' width
WIDTH = 128
LIMIT = 4 << 20     # bytes that the folder may have
UNET = dict(sample_size=16, in_channels=16, out_channels=16, block_out_channels=(48, 64, 64), layers_per_block=1,
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"), transformer_layers_per_block=1,
            attention_head_dim=(1, 2, 2), cross_attention_dim=WIDTH, use_linear_projection=True, norm_num_groups=16,
            addition_embed_type="text_time", addition_time_embed_dim=16, projection_class_embeddings_input_dim=WIDTH + 6 * 16)
# SDXL's own schedule ends with a visible remnant of the picture (sqrt(alpha) 0.068, 4 sigma in 4096 latents of a white-ground
# emoji), which pure noise does not have; DDPM's ends at 0.006.
SCHEDULE = dict(num_train_timesteps=1000, beta_schedule="linear", beta_start=1e-4, beta_end=0.02, prediction_type="epsilon",
                timestep_spacing="trailing")


def captions(full):
    """SLOTS caption variants of one picture; four do not name the style."""
    name, style = re.fullmatch(r"(.*), (\w+) style", full).groups()
    out = [full] * 7 + [f"{name} emoji, {style} style"] * 2 + [f"{style} style {name}"] * 2 + [f"a {style} style emoji of {name}"]
    return out + [name] * 3 + [f"{name} emoji"]


def parts(assets, dev):
    """VAE, text encoder, tokenizer and scorer of the embedded model, in fp32."""
    from diffusers import AutoencoderKL
    from transformers import CLIPModel, CLIPTextModelWithProjection, CLIPTokenizer
    vae = AutoencoderKL.from_pretrained(assets / "emoji-flux/vae")
    text, info = CLIPTextModelWithProjection.from_pretrained(assets / "emoji-clip", output_loading_info=True)
    assert not info["missing_keys"], info["missing_keys"]
    scorer = CLIPModel.from_pretrained(assets / "emoji-clip")
    for m in (vae, text, scorer):
        m.to(dev, torch.float32).eval().requires_grad_(False)
    return vae, text, CLIPTokenizer.from_pretrained(assets / "emoji-flux/tokenizer"), scorer


@torch.no_grad()
def encode(text, tok, prompts, dev):
    """States of the last but one layer [n, 32, 128] and the projected pooled state [n, 128], as SDXL takes them."""
    states, pooled = [], []
    for i in range(0, len(prompts), 1024):
        ids = tok(prompts[i:i + 1024], padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids
        o = text(ids.to(dev), output_hidden_states=True)
        states.append(o.hidden_states[-2])
        pooled.append(o.text_embeds)
    return torch.cat(states), torch.cat(pooled)


@torch.no_grad()
def score(scorer, tok, prompts, images, dev):
    """100 x cosine, every picture (NCHW in 0..1) against every prompt."""
    import torch.nn.functional as F
    ids = tok(prompts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt").input_ids.to(dev)
    t = F.normalize(scorer.text_projection(scorer.text_model(input_ids=ids).pooler_output), dim=-1)
    v = F.normalize(scorer.visual_projection(scorer.vision_model(pixel_values=images.to(dev) * 2 - 1).pooler_output), dim=-1)
    return 100 * v @ t.T


def psnr(a, b):
    return (10 * torch.log10(1 / ((a - b) ** 2).mean((1, 2, 3)).clamp_min(1e-8))).mean().item()


def sheet(images, real, path):
    """8 x 8 generated on the left, the real pictures on the right; NCHW in 0..1."""
    from PIL import Image
    def half(x):
        x = (x.float().cpu() * 255).round().clamp(0, 255).byte().permute(0, 2, 3, 1).numpy()
        s = np.full((8 * 66, 8 * 66, 3), 200, np.uint8)
        for k in range(len(x)):
            s[(k // 8) * 66 + 1:(k // 8) * 66 + 65, (k % 8) * 66 + 1:(k % 8) * 66 + 65] = x[k]
        return s
    Image.fromarray(np.concatenate([half(images), np.full((528, 12, 3), 60, np.uint8), half(real)], 1)).save(path)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument("--data", required=True, help="data_small.npz: images, captions, style")
    p.add_argument("--out", required=True, type=Path)
    p.add_argument("--assets", type=Path, default=HERE.parent / "emoji", help="the embedded model's folder")
    p.add_argument("--minutes", type=float, default=6.0)
    p.add_argument("--reserve", type=float, default=40.0, help="seconds kept for the last evaluation")
    p.add_argument("--init", default="", help="folder of a UNet to start from")
    p.add_argument("--device", default="cuda")
    p.add_argument("--compile", default="graph", choices=("graph", "inductor", "none"),
                   help="graph: compiled, and the training step captured as a CUDA graph")
    p.add_argument("--batch", type=int, default=1024)
    p.add_argument("--lr", type=float, default=2e-3)
    p.add_argument("--warmup", type=int, default=400)
    p.add_argument("--ema", type=float, default=0.9995)
    p.add_argument("--steps", type=int, default=0, help="stop after so many, whatever the time")
    p.add_argument("--limit", type=int, default=0, help="smoke test: so many pictures of each style")
    p.add_argument("--seed", type=int, default=0)
    a = p.parse_args()
    start, dev, lines = time.time(), a.device, []
    a.out.mkdir(parents=True, exist_ok=True)

    def log(s):
        lines.append(s)
        print(f"[{time.time() - start:6.1f}] {s}", flush=True)

    from diffusers import DDPMScheduler, EulerDiscreteScheduler, StableDiffusionXLPipeline, UNet2DConditionModel
    torch.manual_seed(a.seed)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.enable_cudnn_sdp(False)                  # its backward fails under torch.compile (torch 2.11, H100)
    vae, text, tok, scorer = parts(a.assets, dev)

    # data: latents, and every caption's states, once
    data = np.load(a.data)
    images, full, style = data["images"], [str(c) for c in data["captions"]], data["style"]
    evaluated = json.loads((a.assets / "prompts_eval.json").read_text())
    where = [full.index(e["prompt"]) for e in evaluated]
    keep = np.arange(len(full)) if not a.limit else np.concatenate([np.flatnonzero(style == s)[:a.limit] for s in (0, 1)])
    known: dict[str, int] = {}
    table = torch.tensor([[known.setdefault(c, len(known)) for c in captions(full[i])] for i in keep], device=dev)
    states, pooled = encode(text, tok, list(known), dev)
    pixels = torch.from_numpy(images[keep]).permute(0, 3, 1, 2)
    real = torch.from_numpy(images[where]).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():                                        # SDXL knows a scaling factor and no shift
        Z = torch.cat([vae.encode(x.to(dev).float() / 127.5 - 1).latent_dist.mode() for x in pixels.split(256)]) * vae.config.scaling_factor
    noise = DDPMScheduler(**SCHEDULE)
    abar = noise.alphas_cumprod.to(dev)
    snr = abar / (1 - abar)
    weight = snr.clamp(max=5) / snr                              # min-SNR-5 (Hang et al. 2023), for a prediction of the noise

    unet = UNet2DConditionModel.from_pretrained(a.init) if a.init else UNet2DConditionModel(**UNET)
    unet = unet.to(dev, torch.float32).train()
    ema = copy.deepcopy(unet).eval().requires_grad_(False)
    channels_last = dev == "cuda"
    if channels_last:
        unet.to(memory_format=torch.channels_last)
    params = list(unet.parameters())
    count = sum(p.numel() for p in params)
    log(f"torch {torch.__version__}, {len(Z)} pictures, {len(known)} captions, latents std {Z.std().item():.3f} mean {Z.mean().item():.3f}, "
        f"{count / 1e6:.3f}M parameters = {count * 2 / 2**20:.2f} MiB in fp16")
    assert count * 2 < LIMIT, "too large to ship"
    graphed = a.compile == "graph" and dev == "cuda"
    opt = torch.optim.AdamW([dict(params=[p for p in params if p.dim() > 1], weight_decay=0.01),
                             dict(params=[p for p in params if p.dim() <= 1], weight_decay=0.0)],
                            lr=torch.tensor(a.lr, device=dev) if graphed else a.lr, betas=(0.9, 0.99), fused=dev == "cuda",
                            capturable=graphed)
    forward = lambda x, t, c, y, s: unet(x, t, encoder_hidden_states=c, added_cond_kwargs={"text_embeds": y, "time_ids": s}, return_dict=False)[0]
    step_of = torch.compile(forward, dynamic=False) if a.compile != "none" else forward
    B = a.batch
    bi, bc, bt = (torch.zeros(B, dtype=torch.long, device=dev) for _ in range(3))      # the batch: picture, caption, time
    bn, bk = torch.zeros(B, *Z.shape[1:], device=dev), torch.zeros(B, device=dev)      # noise, whether the caption is kept
    sizes = torch.tensor([64.0, 64, 0, 0, 64, 64], device=dev).repeat(B, 1)
    run, seen = torch.zeros((), device=dev), 0

    def draw():
        bi.random_(0, len(Z))
        bc.copy_(table[bi, torch.randint(SLOTS, (B,), device=dev)])
        bt.random_(0, len(abar))
        bn.normal_()
        bk.copy_((torch.rand(B, device=dev) >= 0.1).float())                           # zeros stand for no caption, as in SDXL

    def train_step(update=True):
        z, ab = Z[bi], abar[bt][:, None, None, None]
        x = ab.sqrt() * z + (1 - ab).sqrt() * bn
        if channels_last:
            x = x.contiguous(memory_format=torch.channels_last)
        with torch.autocast(dev, torch.bfloat16, cache_enabled=not graphed):
            e = step_of(x, bt, states[bc] * bk[:, None, None], pooled[bc] * bk[:, None], sizes)
        loss = (weight[bt] * (e.float() - bn).square().mean((1, 2, 3))).mean()
        loss.backward()
        if update:
            torch.nn.utils.clip_grad_norm_(params, 1.0)
            opt.step()
            run.add_(loss.detach())

    draw()
    try:
        train_step(update=False)                                 # compiles, before the clock starts
    except Exception as error:                                   # a slower run is better than none
        log(f"compiling failed, training goes on eager: {type(error).__name__}: {str(error)[:300]}")
        step_of = forward
        train_step(update=False)
    opt.zero_grad(set_to_none=True)
    log("first step done")
    graph = None
    if graphed:                                                  # the step is bound by launches: replay it as one CUDA graph
        for g in opt.param_groups:
            g["lr"].fill_(1e-7)
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(3):
                draw()
                opt.zero_grad(set_to_none=True)
                train_step()
        torch.cuda.current_stream().wait_stream(side)
        torch.cuda.synchronize()
        opt.zero_grad(set_to_none=True)
        try:
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                train_step()
        except Exception as error:
            log(f"capturing failed, training goes on without: {type(error).__name__}: {str(error)[:300]}")
            graph = None
            torch.cuda.synchronize()
            opt.zero_grad(set_to_none=True)
        run.zero_()
        log("captured" if graph else "not captured")

    pipe = StableDiffusionXLPipeline(vae=vae, text_encoder=None, text_encoder_2=text, tokenizer=None, tokenizer_2=tok, unet=ema,
                                     scheduler=EulerDiscreteScheduler(**SCHEDULE), add_watermarker=False)
    pipe.set_progress_bar_config(disable=True)

    def sample(prompts, guidance, steps=20, seed=0):
        """NCHW in 0..1 on the CPU; the noise of a prompt depends on its place alone, on any machine."""
        noises = [torch.Generator("cpu").manual_seed(seed + i) for i in range(len(prompts))]
        c, y = encode(text, tok, prompts, dev)
        out = pipe(prompt_embeds=c, pooled_prompt_embeds=y, negative_prompt_embeds=torch.zeros_like(c), negative_pooled_prompt_embeds=torch.zeros_like(y),
                   guidance_scale=guidance, num_inference_steps=steps, height=64, width=64, generator=noises, output_type="pt")
        return out.images.float().cpu()

    def evaluate(guidance, named=False, name=None):
        prompts = [e["name" if named else "prompt"] for e in evaluated]
        got = sample(prompts, guidance)
        S = score(scorer, tok, prompts, got, dev)
        n = len(S)
        q = dict(guidance=guidance, style_word=not named, clip=S.diagonal().mean().item(), clip_lowest=S.diagonal().min().item(),
                 clip_mismatched=(S.sum() - S.diagonal().sum()).item() / (n * (n - 1)),
                 top1=(S.argmax(1) == torch.arange(n, device=S.device)).float().mean().item(), psnr_to_real=psnr(got, real))
        log("eval " + json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in q.items()}))
        if name:
            sheet(got, real, a.out / f"{name}.png")
        return q, got

    budget = a.minutes * 60 - a.reserve - (time.time() - start)
    began, step, hist, evals, last = time.time(), 0, [], [], time.time()
    while (elapsed := time.time() - began) < budget and not (a.steps and step >= a.steps):
        draw()
        step += 1
        rate = a.lr * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * min(1, elapsed / budget)))) * min(1, step / a.warmup)
        for g in opt.param_groups:
            if graphed:                                          # a tensor, read by the captured graph
                g["lr"].fill_(rate)
            else:
                g["lr"] = rate
        if graph is not None:
            graph.replay()
        else:
            opt.zero_grad(set_to_none=True)
            train_step()
        with torch.no_grad():
            torch._foreach_lerp_(list(ema.parameters()), params, 1 - min(a.ema, (1 + step) / (10 + step)))
        seen += 1
        if seen == 500 or step == 1:
            hist.append((step, round(run.item() / seen, 5), round(elapsed, 1)))
            log("step %d loss %.5f t %.0f" % hist[-1] + f" lr {rate:.2e}")
            run.zero_()
            seen = 0
            if time.time() - last > 75:
                evals.append(evaluate(2.0)[0] | dict(step=step))
                last = time.time()

    # what is shipped is fp16: round before the evaluation
    with torch.no_grad():
        for q in ema.parameters():
            q.copy_(q.half().float())
    where_to = a.out / "emoji_sdxl"
    copy.deepcopy(ema).cpu().half().save_pretrained(where_to / "unet")
    pipe.scheduler.save_pretrained(where_to / "scheduler")
    index = {"_class_name": "StableDiffusionXLPipeline", "_diffusers_version": __import__("diffusers").__version__,
             "force_zeros_for_empty_prompt": True, "feature_extractor": [None, None], "image_encoder": [None, None],
             "scheduler": ["diffusers", "EulerDiscreteScheduler"], "text_encoder": [None, None],
             "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"], "tokenizer": [None, None],
             "tokenizer_2": ["transformers", "CLIPTokenizer"], "unet": ["diffusers", "UNet2DConditionModel"], "vae": ["diffusers", "AutoencoderKL"]}
    (where_to / "model_index.json").write_text(json.dumps(index, indent=2) + "\n")
    size = sum(f.stat().st_size for f in where_to.rglob("*") if f.is_file())
    log(f"{step} steps of {B} in {time.time() - began:.0f} s; {size / 2**20:.2f} MiB in {where_to.name}")
    assert size <= LIMIT, "too large to ship"
    final = [evaluate(g, name=f"guidance-{g:g}")[0] for g in (1.0, 2.0, 3.0, 4.0, 5.0)]
    final += [evaluate(g, named=True, name=f"no-style-{g:g}")[0] for g in (1.0, 2.0, 3.0, 5.0)]
    log("real pictures: " + json.dumps(dict(clip=score(scorer, tok, [e["prompt"] for e in evaluated], real, dev).diagonal().mean().item())))
    best, few = max((q for q in final if not q["style_word"]), key=lambda q: q["clip"])["guidance"], {}
    names = [e["name"] for e in evaluated]
    long = sample(names, best, 50)
    for n in (30, 20, 15, 10, 7, 5):                             # do steps matter? prompts without a style word
        few[n] = round(psnr(sample(names, best, n), long), 2)
    log(f"PSNR to 50 steps, no style word, guidance {best:g}: {few}")
    (a.out / "log.json").write_text(json.dumps(dict(arguments={k: str(v) for k, v in vars(a).items()}, steps=step, bytes=size, history=hist,
                                                    during=evals, final=final, psnr_to_50_steps=few, log=lines), indent=1))
    log("done")


if __name__ == "__main__":
    main()
