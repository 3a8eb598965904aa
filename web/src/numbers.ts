// Numbers as they are shown.

/** A probability. */
export const percent = (part: number) =>
  part >= 0.0995 ? `${(part * 100).toFixed(0)} %` : part >= 0.001 ? `${(part * 100).toFixed(1)} %` : "< 0.1 %";

/** Tokens in a second. */
export const perSecond = (rate: number) => `${rate < 100 ? rate.toFixed(1) : Math.round(rate).toLocaleString()} tok/s`;
