declare module "licences" {
  const text: string;
  export default text;
}
declare module "temml" {
  const temml: {
    __renderToMathMLTree(tex: string, options: object): { toNode(): Node };
  };
  export default temml;
}
