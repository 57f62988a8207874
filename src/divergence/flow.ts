/** Which of a flow's two ports is the service, and what people call it. */
import type { FlowDescription } from "./record.ts";

/** Services that a reader knows by name (IANA's names, or what people say). */
const SERVICE_NAMES: Record<number, string> = {
  20: "FTP data",
  21: "FTP",
  22: "SSH",
  23: "Telnet",
  25: "SMTP",
  53: "DNS",
  67: "DHCP",
  68: "DHCP",
  69: "TFTP",
  80: "HTTP",
  88: "Kerberos",
  110: "POP3",
  111: "RPC bind",
  123: "NTP",
  137: "NetBIOS",
  143: "IMAP",
  161: "SNMP",
  179: "BGP",
  319: "PTP",
  320: "PTP",
  389: "LDAP",
  443: "HTTPS",
  445: "SMB",
  465: "SMTPS",
  500: "IKE",
  514: "syslog",
  546: "DHCPv6",
  547: "DHCPv6",
  587: "SMTP submission",
  636: "LDAPS",
  853: "DNS over TLS",
  873: "rsync",
  993: "IMAPS",
  995: "POP3S",
  1194: "OpenVPN",
  1433: "SQL Server",
  1521: "Oracle",
  1883: "MQTT",
  2049: "NFS",
  2379: "etcd",
  3260: "iSCSI",
  3306: "MySQL",
  3389: "RDP",
  3478: "STUN",
  4500: "IPsec NAT traversal",
  4789: "VXLAN",
  5060: "SIP",
  5353: "mDNS",
  5355: "LLMNR",
  5432: "PostgreSQL",
  5672: "AMQP",
  5900: "VNC",
  6379: "Redis",
  6443: "Kubernetes API",
  8080: "HTTP",
  8443: "HTTPS",
  9092: "Kafka",
  9100: "node_exporter",
  11211: "memcached",
  27017: "MongoDB",
  51820: "WireGuard",
};

interface Service {
  port: number;
  /** Undefined for a port that has no well-known use. */
  name: string | undefined;
  /** source: the VM serves; destination: the VM is the client. */
  side: "source" | "destination";
}

/**
 * The service's end of a flow: the port that has a name, or else the lower one. Undefined for flows without
 * ports.
 */
export function serviceOf(flow: FlowDescription): Service | undefined {
  const { sourcePort, destinationPort } = flow;
  if (sourcePort === undefined || destinationPort === undefined) return undefined;
  const named = (port: number) => (SERVICE_NAMES[port] === undefined ? 0 : 1);
  const preference = named(sourcePort) - named(destinationPort) || destinationPort - sourcePort;
  const side = preference >= 0 ? "source" : "destination";
  const port = side === "source" ? sourcePort : destinationPort;
  return { port, name: SERVICE_NAMES[port], side };
}

/** Key of a flow in a ranking by port: "tcp 443"; "icmp" for flows without ports. */
export function portKey(flow: FlowDescription): string {
  const service = serviceOf(flow);
  return service === undefined ? flow.protocol : `${flow.protocol} ${service.port}`;
}
