// Architectures: their costs in closed form (as `vit/cost.py` has them), and how they fit into an address.

export const UNITS = [["num_heads", "heads", "H"], ["qk_dim", "QK per head", "QK"], ["v_dim", "V per head", "V"], ["mlp_dim", "MLP", "MLP"]];

const pair = (value) => (Array.isArray(value) ? value : [value, value]);
const patches = (arch) => {
  const image = pair(arch.image_size), patch = pair(arch.patch_size);
  return Math.floor(image[0] / patch[0]) * Math.floor(image[1] / patch[1]);
};
const prefix = (arch) => Number(arch.class_token) + Number(arch.dist_token) + arch.reg_tokens;
export const tokens = (arch) => patches(arch) + prefix(arch);

// Multiply-adds for one image: matrix products and the patch convolution.
export const macs = (arch) => {
  const n = tokens(arch), e = arch.embed_dim, patch = pair(arch.patch_size);
  let total = patches(arch) * arch.in_chans * patch[0] * patch[1] * e + e * arch.num_classes * (arch.dist_token ? 2 : 1);
  for (const b of arch.blocks) total += (2 * n * e + n * n) * b.num_heads * (b.qk_dim + b.v_dim) + 2 * n * e * b.mlp_dim;
  return total;
};

export const params = (arch) => {
  const e = arch.embed_dim, patch = pair(arch.patch_size), norm = (width) => (arch.norm === "layer" ? 2 : 1) * width;
  let total = e * (arch.in_chans * patch[0] * patch[1] + Number(arch.patch_bias)) + e * prefix(arch);
  total += e * { all: tokens(arch), patches: patches(arch), none: 0 }[arch.pos_embed];
  total += norm(e) * (Number(arch.pre_norm) + Number(arch.final_norm !== "none"));
  for (const b of arch.blocks) {
    const values = b.num_heads * b.v_dim, qkv = 2 * b.num_heads * b.qk_dim + values, bias = Number(arch.proj_bias);
    total += qkv * (e + Number(arch.qkv_bias)) + e * (values + bias) + 2 * e * b.mlp_dim + bias * (b.mlp_dim + e);
    total += 2 * norm(e) + 2 * norm(b.qk_dim) * Number(arch.qk_norm) + 2 * e * Number(arch.layer_scale);
  }
  return total + arch.num_classes * (e + 1) * (arch.dist_token ? 2 : 1);
};

// Other sizes, everything else as it was; a softmax scale that follows QK stays the uncut model's.
export const resized = (arch, embedDim, blocks) => ({ ...arch, embed_dim: embedDim, blocks,
  softmax_scale: arch.softmax_scale ?? arch.blocks.map((block) => block.qk_dim ** -0.5) });

// embed_dim, then four sizes a block, as the staircase has them.
export const ofRow = (whole, row) => resized(whole, row[0], whole.blocks.map((_, index) =>
  Object.fromEntries(UNITS.map(([field], unit) => [field, row[1 + 4 * index + unit]]))));

export const toText = (arch) => [arch.embed_dim, ...arch.blocks.map((b) => UNITS.map(([field]) => b[field]).join("."))].join("_");

// null where the text describes no sizes of a model with these blocks.
export const fromText = (whole, text) => {
  const [embed, ...blocks] = (text ?? "").split("_");
  const sizes = blocks.map((block) => block.split(".").map(Number));
  const right = /^\d+$/.test(embed) && sizes.length === whole.blocks.length && sizes.every((b) => b.length === 4 && b.every((n) => Number.isInteger(n) && n > 0));
  return right ? ofRow(whole, [Number(embed), ...sizes.flat()]) : null;
};

// Every answer of a frontier, from the safetensors of POST /v1/architectures/staircase.
export class Staircase {
  constructor(buffer) {
    const length = Number(new DataView(buffer).getBigUint64(0, true)), start = 8 + length;
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
    const types = { F64: Float64Array, U16: Uint16Array, I32: Int32Array };
    for (const field of ["ms", "kept", "bound", "sizes"]) {
      const { dtype, shape, data_offsets: [from] } = header[field];
      this[field] = new types[dtype](buffer, start + from, shape.reduce((a, b) => a * b, 1));
    }
    this.document = JSON.parse(header.__metadata__.document);
    this.length = this.ms.length;
    this.width = header.sizes.shape[1];
  }

  // The slowest answer within a budget; the first one where nothing is.
  best(budget) {
    let low = 0, high = this.length;
    while (low < high) {
      const middle = (low + high) >> 1;
      if (this.ms[middle] <= budget * (1 + 1e-12)) low = middle + 1; else high = middle;
    }
    return Math.max(low - 1, 0);
  }

  row(index) { return this.sizes.subarray(index * this.width, (index + 1) * this.width); }

  architecture(index) { return ofRow(this.document.whole.architecture, this.row(index)); }

  // At most two answers a pixel column: what a line of this width can show of a curve that only rises.
  sample(columns) {
    if (this.length <= 2 * columns) return Array.from({ length: this.length }, (_, index) => index);
    const low = this.ms[0], width = (this.ms[this.length - 1] - low) / columns || 1, found = [];
    let column = -1;
    for (let index = 0; index < this.length; index++) {
      const now = Math.floor((this.ms[index] - low) / width);
      if (now !== column) {
        if (index > 0 && found.at(-1) !== index - 1) found.push(index - 1);
        found.push(index);
        column = now;
      }
    }
    if (found.at(-1) !== this.length - 1) found.push(this.length - 1);
    return found;
  }
}
